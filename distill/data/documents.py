"""Documents of a corpus: text, JSON and Parquet files, folders of them, saved datasets and hub datasets."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.config import DataConfig
from teachers.errors import UserError
from teachers.source import parse_source, read_object, reason

TEXT, JSON, PARQUET = {".txt", ".md", ".text"}, {".json", ".jsonl", ".ndjson"}, {".parquet"}


def read_documents(config: DataConfig) -> Iterator[str]:
    """Yield every document of a corpus: text files (one document each), JSONL, Parquet, saved or hub datasets.

    Raises:
        UserError: missing, empty, unreadable or non-UTF-8 input, or no such column.
    """
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        yield from _read_hub(source.path, source.revision, config)
        return
    path = Path(source.path)
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        import datasets

        _check_saved(path)
        try:
            table = datasets.load_from_disk(str(path))
            for part in table.values() if isinstance(table, dict) else [table]:
                part.data.table.validate(full=True)  # Arrow trusts the offsets in a file
        except Exception as error:  # a dozen types for what is one thing: unreadable
            raise UserError(
                f"cannot read {path} as a saved dataset ({reason(error)}); check that the folder is whole"
            ) from error
        yield from _column(table, config)
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in TEXT | JSON | PARQUET)
        if not files:
            raise UserError(f"data.path {config.path!r} holds no .txt, .jsonl or .parquet file; name a corpus file")
        for file in files:
            yield from _read_file(file, config)
    elif path.is_file():
        yield from _read_file(path, config)
    else:
        raise UserError(
            f"data.path {config.path!r} does not exist; give a text, JSONL or Parquet file, or a dataset's hub name "
            "with its commit (org/name@<40 hex digits>)"
        )


def _read_file(path: Path, config: DataConfig) -> Iterator[str]:
    """One text, JSON or Parquet file, read here: `datasets` would copy it first, and a damaged one can crash it."""
    try:
        if path.suffix in JSON:
            yield from _read_json(path, config)
        elif path.suffix in PARQUET:
            yield from _read_parquet(path, config)
        else:
            yield codecs.decode(path.read_bytes(), "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start} of what was read; "
            "convert it, e.g. with iconv -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}; check the path, its permissions and content") from error


def _read_json(path: Path, config: DataConfig) -> Iterator[str]:
    """JSON lines, or one array of objects."""
    with path.open(encoding="utf-8-sig") as file:
        is_array = next((line for line in file if line.strip()), "").lstrip().startswith("[")
        file.seek(0)
        for number, text in enumerate([file.read()] if is_array else file, 1):
            if not text.strip():
                continue
            try:
                rows = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"cannot read {path} as json (line {number}: {reason(error)}); it must hold one object a line, or "
                    "an array of objects"
                ) from error
            for row in rows if is_array else [rows]:
                if not isinstance(row, dict):
                    raise UserError(f"{path} holds {type(row).__name__} in line {number}; each row must be an object")
                _check_column(list(row), config)
                yield _text(row[config.text_column], config)


def _read_parquet(path: Path, config: DataConfig) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        _check_column(file.schema_arrow.names, config)
        for batch in file.iter_batches(columns=[config.text_column]):
            batch.validate(full=True)
            for document in batch.column(0).to_pylist():
                yield _text(document, config)
    except (pyarrow.ArrowException, pyarrow.lib.ArrowNotImplementedError, OverflowError) as error:
        raise UserError(f"cannot read {path} as parquet ({reason(error)}); check that the file is whole") from error


def _check_saved(folder: Path) -> None:
    """Refuse a saved dataset whose lists name files outside its folder.

    Raises:
        UserError: such a name, or a list that cannot be read.
    """
    folders = [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = read_object(folder / "dataset_dict.json").get("splits")
        folders = [folder / name for name in _plain_names(splits, folder / "dataset_dict.json")]
    for part in folders:
        files = read_object(part / "state.json").get("_data_files")
        names = [f.get("filename") for f in files if isinstance(f, dict)] if isinstance(files, list) else None
        _plain_names(names, part / "state.json")


def _plain_names(names: Any, named_in: Path) -> list[str]:
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"{named_in} names {name!r}, which is not in its folder; save the dataset again")
    return names


def _read_hub(name: str, commit: str, config: DataConfig) -> Iterator[str]:
    import datasets

    try:
        table = datasets.load_dataset(name, revision=commit, split=config.split)
    except Exception as error:
        raise UserError(
            f"cannot load dataset {config.path!r} ({reason(error)}); check name, commit, split and connection"
        ) from error
    yield from _column(table, config)


def _column(table: Any, config: DataConfig) -> Iterator[str]:
    from datasets import DatasetDict

    if isinstance(table, DatasetDict):
        if config.split not in table:
            raise UserError(f"data.split {config.split!r} is not in {config.path!r}; it has {', '.join(table)}")
        table = table[config.split]
    _check_column(table.column_names, config)
    for document in table[config.text_column]:
        yield _text(document, config)


def _check_column(columns: list[str], config: DataConfig) -> None:
    if config.text_column not in columns:
        raise UserError(
            f"data.text_column {config.text_column!r} is not in {config.path!r}; its columns are {', '.join(columns)}"
        )


def _text(document: Any, config: DataConfig) -> str:
    if not isinstance(document, str):
        raise UserError(
            f"column {config.text_column!r} of {config.path!r} holds {type(document).__name__}, not text; "
            "set data.text_column to a column of strings"
        )
    try:
        document.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(
            f"a document of {config.path!r} has {document[error.start]!r}, half of a character; remove it"
        ) from error
    return document
