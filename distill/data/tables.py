"""Rows of JSON and Parquet files, of saved and of hub datasets, read as a stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from distill.config import DataConfig
from distill.data.layout import CorpusFile, corpus_files
from teachers.errors import UserError
from teachers.source import parse_source, reason

AT_ONCE = 1 << 20
"""Bytes that are read at a time [own]."""
ROWS_AT_ONCE = 256
JSON_SHAPE = "it must hold one object a line, or an array of objects"

Columns = Mapping[str, str]
"""What is read of each row: the setting that names a column → its name."""


@dataclass(frozen=True)
class TableRow:
    """One row of a table.

    Attributes:
        values: by column.
        place: where it stands, for messages: its number, and the file.
    """

    values: dict[str, Any]
    place: str

    def checked(self, text: str) -> str:
        """A text of the row's.

        Raises:
            UserError: it is none.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise UserError(f"{self.place} has {text[error.start]!r}, half of a character; remove it") from error
        return text


def source_parts(config: DataConfig) -> list[str]:
    """What tells data from others: the kind and the digest of each file, or a hub dataset's commit."""
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        return [source.path, source.revision, config.split]
    return [part for file in corpus_files(Path(source.path), config) for part in (file.kind, _sha256(file.path))]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def read_table(file: CorpusFile, columns: Columns) -> Iterator[TableRow]:
    """The rows of one file, read here: `datasets` would copy it first, and a damaged one can crash it.

    Raises:
        UserError: it can not be read, or has no such column.
    """
    path = file.path
    try:
        if file.kind == "json":
            yield from _read_json(path, columns)
        elif file.kind == "parquet":
            yield from _read_parquet(path, columns)
        else:
            yield from _read_arrow(path, columns)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, f"{error.start} of what was read") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """What to say of a file that the system does not let us read."""
    return UserError(f"cannot read {path}: {reason(error)}; check the path, its permissions and content")


def not_utf8(path: Path, error: UnicodeDecodeError, offset: int | str) -> UserError:
    """What to say of a file in another encoding."""
    return UserError(
        f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset}; convert it, e.g. with "
        "iconv -t utf-8"
    )


# --- JSON ----------------------------------------------------------------------------------------------------------


def _read_json(path: Path, columns: Columns) -> Iterator[TableRow]:
    """JSON lines, or one array of objects."""
    with path.open(encoding="utf-8-sig") as file:
        head = next((text for text in iter(partial(file.read, AT_ONCE), "") if text.strip()), "")
        file.seek(0)
        is_array = head.lstrip().startswith("[")
        for number, row in _array(file, path) if is_array else _lines(file, path):
            where = f"{'row' if is_array else 'line'} {number}"
            if not isinstance(row, dict):
                raise UserError(f"{path} holds {type(row).__name__} in {where}; each row must be an object")
            place = f"{where} of {str(path)!r}"
            for setting, name in columns.items():
                if name not in row:
                    raise UserError(
                        f"{setting} {name!r} is not in {place}; its columns are {', '.join(row)}; name one of them, "
                        f"and in a JSON file {JSON_SHAPE}"
                    )
            yield TableRow(row, place)


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                several = number == 1 and line.lstrip().startswith("{") and file.readline() != ""
                remedy = "; one that is spread over several lines is made so by jq -c ." if several else ""
                raise UserError(
                    f"cannot read {path} as json (line {number}: {reason(error)}); {JSON_SHAPE}{remedy}"
                ) from error


def _array(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    """The items of an array, of which no more than a few are in memory at once."""
    decoder, number = json.JSONDecoder(), 0
    text = _after_space(file, "")[1:]
    while True:
        text = _after_space(file, text)
        if number and text.startswith(","):
            text = _after_space(file, text[1:])
        elif text.startswith("]"):
            break
        elif number:
            raise UserError(f"cannot read {path} as json (after row {number}: expecting ',' or ']'); {JSON_SHAPE}")
        number += 1
        while True:
            try:
                item, end = decoder.raw_decode(text)
            except (ValueError, RecursionError) as error:
                more = file.read(max(AT_ONCE, len(text))) if _is_cut_off(error, text) else ""
                if not more:
                    raise UserError(
                        f"cannot read {path} as json (row {number}: {reason(error)}); {JSON_SHAPE}"
                    ) from error
                text += more
            else:
                break
        yield number, item
        text = text[end:]
    if _after_space(file, text[1:]):
        raise UserError(f"cannot read {path} as json (more after the array's end); {JSON_SHAPE}")


def _after_space(file: TextIO, text: str) -> str:
    """The text from its first character that is no white space, read on for where it has none."""
    text = text.lstrip()
    while not text:
        more = file.read(AT_ONCE)
        if not more:
            return ""
        text = more.lstrip()
    return text


def _is_cut_off(error: Exception, text: str) -> bool:
    """Whether an item may be whole once more of the file has been read."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith(("Unterminated string", "Invalid \\")) or error.pos >= len(text) - len("-Infinity")


# --- Arrow and Parquet ---------------------------------------------------------------------------------------------


def _read_parquet(path: Path, columns: Columns) -> Iterator[TableRow]:
    from pyarrow import parquet

    with _as(path, "parquet"), path.open("rb") as opened:
        file = parquet.ParquetFile(opened, page_checksum_verification=True, pre_buffer=False, buffer_size=AT_ONCE)
        _check_columns(file.schema_arrow.names, path, columns)
        yield from _batches(file.iter_batches(ROWS_AT_ONCE, columns=[*columns.values()]), path)


def _read_arrow(path: Path, columns: Columns) -> Iterator[TableRow]:
    """A file of a saved dataset, read as a stream: mapped into memory, it would count as this process's."""
    from pyarrow import ipc

    with _as(path, "a saved dataset"), path.open("rb") as opened, ipc.open_stream(opened) as stream:
        _check_columns(stream.schema.names, path, columns)
        yield from _batches((batch.select([*columns.values()]) for batch in stream), path)


def _batches(batches: Iterable[Any], path: Path) -> Iterator[TableRow]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # Arrow trusts the offsets in a file
        for first in range(0, batch.num_rows, ROWS_AT_ONCE):
            for values in batch.slice(first, ROWS_AT_ONCE).to_pylist():
                number += 1
                yield TableRow(values, f"row {number} of {str(path)!r}")


@contextmanager
def _as(path: Path, what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OverflowError) as error:
        raise UserError(f"cannot read {path} as {what} ({reason(error)}); check that the file is whole") from error


def _check_columns(names: list[str], path: Path | str, columns: Columns) -> None:
    for setting, name in columns.items():
        if name not in names:
            raise UserError(f"{setting} {name!r} is not in {str(path)!r}; its columns are {', '.join(names)}")


# --- the hub -------------------------------------------------------------------------------------------------------


def read_hub(name: str, commit: str, config: DataConfig, columns: Columns) -> Iterator[TableRow]:
    """The rows of a hub dataset's split.

    Raises:
        UserError: it can not be loaded, or has no such column.
    """
    import datasets

    try:
        table = datasets.load_dataset(name, revision=commit, split=config.split)
    except Exception as error:
        raise UserError(
            f"cannot load dataset {config.path!r} ({reason(error)}); check name, commit, split and connection"
        ) from error
    _check_columns(table.column_names, config.path, columns)
    names = [*columns.values()]
    for number, values in enumerate(zip(*(table[name] for name in names), strict=True), 1):
        yield TableRow(dict(zip(names, values, strict=True)), f"row {number} of {config.path!r}")
