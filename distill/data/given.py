"""Rows that a program hands over: written once as JSON lines, which a config can name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.config.data import COLUMNS, Format
from distill.data.token_files import VARIABLE, cache_folder
from teachers.errors import UserError
from teachers.files import publish
from teachers.source import reason

GivenRows = Iterable[str] | Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""Prompts; or rows, of which a `datasets.Dataset` is one; or columns of equal length."""
ORDER: tuple[Format, ...] = ("messages", "prompt_completion", "prompt_only")
"""Formats that rows may be of, the one that says most first."""


def data_section(given: GivenRows) -> dict[str, Any]:
    """What a config's ``data`` section says of rows: their file, and the format that their columns are of.

    The file is named by its content, in the folder of the cache.

    Args:
        given: gone through twice, so no generator.

    Raises:
        UserError: no row, or one that is none, columns of no format, or no room for the file.
    """
    first = next(_rows(given), None)
    if first is None:
        raise UserError("data hold no row; give some prompts")
    format, columns = _format(first)
    digest = hashlib.sha256()
    for line in _lines(given, columns):
        digest.update(line)
    path = cache_folder().parent / "rows" / f"{digest.hexdigest()[:32]}.jsonl"
    if not path.is_file():
        _write(path, _lines(given, columns))
    return {"path": str(path), "format": format}


def _rows(given: GivenRows) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(_of_columns(given) if isinstance(given, Mapping) else given, 1):
        if not isinstance(row, str | Mapping):
            raise UserError(f"row {number} of data is {type(row).__name__}; give prompts, or rows with named columns")
        yield {"prompt": row} if isinstance(row, str) else row


def _of_columns(columns: Mapping[Any, Sequence[Any]]) -> Iterator[Mapping[str, Any]]:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(f"data have columns of different lengths ({lengths}); give one entry a row in each")
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _format(row: Mapping[str, Any]) -> tuple[Format, tuple[str, ...]]:
    if "text" in row and not any(set(COLUMNS[name]) <= row.keys() for name in ORDER):
        return "text", ("text",)
    for name in ORDER:
        if set(COLUMNS[name]) <= row.keys():
            return name, COLUMNS[name]
    raise UserError(
        f"rows of data have the columns {', '.join(map(str, row))}; call them text, messages, prompt and completion, "
        "or prompt alone"
    )


def _lines(given: GivenRows, columns: Sequence[str]) -> Iterator[bytes]:
    for number, row in enumerate(_rows(given), 1):
        try:
            yield json.dumps({name: row[name] for name in columns}).encode() + b"\n"
        except KeyError as error:
            raise UserError(f"row {number} of data has no {error.args[0]!r}, as row 1 has; add it") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"row {number} of data is no text ({reason(error)}); give strings or messages") from error


def _write(path: Path, lines: Iterable[bytes]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.writelines(lines)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(path, write)
    except OSError as error:
        raise UserError(
            f"cannot keep rows in {path.parent} ({reason(error)}); free some space, or set {VARIABLE} to a folder that "
            "has some"
        ) from error
