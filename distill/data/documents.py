"""Documents of a corpus, read as a stream: text, JSON and Parquet files, folders of them, saved and hub datasets."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from distill.config import DataConfig
from distill.data.layout import CorpusFile, corpus_files
from teachers.errors import UserError
from teachers.source import parse_source, reason

Chunk = tuple[str, bool]
"""Text, and whether a document ends with it."""
AT_ONCE = 1 << 20
"""Bytes that are read at a time [own]."""
ROWS_AT_ONCE = 256
BYTE_ORDER_MARK = "\ufeff"
JSON_SHAPE = "it must hold one object a line, or an array of objects"


def read_documents(config: DataConfig) -> Iterator[str]:
    """Yield every document of a corpus: a text file is one, a row of any other format is one.

    Raises:
        UserError: see `read_chunks`.
    """
    parts: list[str] = []
    for text, ends in read_chunks(config):
        parts.append(text)
        if ends:
            yield "".join(parts)
            parts = []


def read_chunks(config: DataConfig) -> Iterator[Chunk]:
    """Yield every document of a corpus, a large text file in several chunks, so that memory does not grow with it.

    A byte order mark in front of a document is dropped.

    Raises:
        UserError: missing, empty, unreadable or non-UTF-8 input, or no such column.
    """
    begins = True
    for text, ends in _chunks(config):
        yield text.removeprefix(BYTE_ORDER_MARK) if begins else text, ends
        begins = ends


def corpus_digest(config: DataConfig) -> str:
    """What tells the documents of a corpus from others: a digest of its files' content, whatever their names.

    A hub dataset is told by its commit.

    Raises:
        UserError: see `read_chunks`.
    """
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        parts = [source.path, source.revision, config.split]
    else:
        parts = [part for file in corpus_files(Path(source.path), config) for part in (file.kind, _sha256(file.path))]
    return hashlib.sha256(json.dumps([*parts, config.text_column]).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _chunks(config: DataConfig) -> Iterator[Chunk]:
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        yield from _read_hub(source.path, source.revision, config)
    else:
        for file in corpus_files(Path(source.path), config):
            yield from _read_file(file, config)


def _read_file(file: CorpusFile, config: DataConfig) -> Iterator[Chunk]:
    """One file, read here: `datasets` would copy it first, and a damaged one can crash it."""
    path = file.path
    try:
        if file.kind == "text":
            yield from _read_text(path, config)
        elif file.kind == "json":
            yield from _read_json(path, config)
        elif file.kind == "parquet":
            yield from _read_parquet(path, config)
        else:
            yield from _read_arrow(path, config)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start} of what was read; "
            "convert it, e.g. with iconv -t utf-8"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {reason(error)}; check the path, its permissions and content")


# --- text ----------------------------------------------------------------------------------------------------------


def _read_text(path: Path, config: DataConfig) -> Iterator[Chunk]:
    """One document, in chunks of whole characters; line ends stay as they are."""
    _check_no_rows(path, config)
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with path.open("rb") as file:
        for content in chain(iter(partial(file.read, AT_ONCE), b""), [b""]):
            pending = len(decoder.getstate()[0])  # bytes of a character that the chunk before has begun
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                    f"{position - pending + error.start}; convert it, e.g. with iconv -t utf-8"
                ) from error
            position += len(content)
            yield text, not content


def _check_no_rows(path: Path, config: DataConfig) -> None:
    """Refuse JSON lines whose name says text: their keys and escapes would be trained on."""
    with path.open("rb") as file:
        line = next((line for line in iter(partial(file.readline, AT_ONCE), b"") if line.strip()), b"")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if isinstance(row, dict) and config.text_column in row:
        raise UserError(f"{path} holds JSON lines, not text; give it a name that ends in .jsonl")


# --- JSON ----------------------------------------------------------------------------------------------------------


def _read_json(path: Path, config: DataConfig) -> Iterator[Chunk]:
    """JSON lines, or one array of objects."""
    with path.open(encoding="utf-8-sig") as file:
        head = next((text for text in iter(partial(file.read, AT_ONCE), "") if text.strip()), "")
        file.seek(0)
        is_array = head.lstrip().startswith("[")
        for number, row in _array(file, path) if is_array else _lines(file, path):
            where = f"{'row' if is_array else 'line'} {number}"
            if not isinstance(row, dict):
                raise UserError(f"{path} holds {type(row).__name__} in {where}; each row must be an object")
            if config.text_column not in row or isinstance(row[config.text_column], dict | list):
                raise _not_by_rows(row, where, path, config)
            yield _text(row[config.text_column], where, path, config), True


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


def _not_by_rows(row: dict[str, Any], where: str, path: Path, config: DataConfig) -> UserError:
    """What to say of an object that is no row with a text."""
    value = row.get(config.text_column)
    texts = list(value.values()) if isinstance(value, dict) else value
    if isinstance(texts, list) and all(text is None or isinstance(text, str) for text in texts):
        return UserError(
            f"{path} is written by columns: {config.text_column!r} holds {type(value).__name__}, not text; write it by "
            "rows, with pandas to_json(…, orient='records', lines=True)"
        )
    if config.text_column in row:
        return _no_text(value, where, path, config)
    return UserError(
        f"data.text_column {config.text_column!r} is not in {where} of {str(path)!r}; its columns are "
        f"{', '.join(row)}; name one of them, and in a JSON file {JSON_SHAPE}"
    )


# --- Arrow and Parquet ---------------------------------------------------------------------------------------------


def _read_parquet(path: Path, config: DataConfig) -> Iterator[Chunk]:
    from pyarrow import parquet

    with _as(path, "parquet"), path.open("rb") as opened:
        file = parquet.ParquetFile(opened, page_checksum_verification=True, pre_buffer=False, buffer_size=AT_ONCE)
        _check_column(file.schema_arrow.names, path, config)
        batches = file.iter_batches(ROWS_AT_ONCE, columns=[config.text_column])
        yield from _batches(batches, path, config)


def _read_arrow(path: Path, config: DataConfig) -> Iterator[Chunk]:
    """A file of a saved dataset, read as a stream: mapped into memory, it would count as this process's."""
    from pyarrow import ipc

    with _as(path, "a saved dataset"), path.open("rb") as opened, ipc.open_stream(opened) as stream:
        _check_column(stream.schema.names, path, config)
        yield from _batches((batch.select([config.text_column]) for batch in stream), path, config)


def _batches(batches: Iterable[Any], path: Path, config: DataConfig) -> Iterator[Chunk]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # Arrow trusts the offsets in a file
        for first in range(0, batch.num_rows, ROWS_AT_ONCE):
            for document in batch.column(0).slice(first, ROWS_AT_ONCE).to_pylist():
                number += 1
                yield _text(document, f"row {number}", path, config), True


@contextmanager
def _as(path: Path, what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OverflowError) as error:
        raise UserError(f"cannot read {path} as {what} ({reason(error)}); check that the file is whole") from error


# --- the hub -------------------------------------------------------------------------------------------------------


def _read_hub(name: str, commit: str, config: DataConfig) -> Iterator[Chunk]:
    import datasets

    try:
        table = datasets.load_dataset(name, revision=commit, split=config.split)
    except Exception as error:
        raise UserError(
            f"cannot load dataset {config.path!r} ({reason(error)}); check name, commit, split and connection"
        ) from error
    _check_column(table.column_names, config.path, config)
    for number, document in enumerate(table[config.text_column], 1):
        yield _text(document, f"row {number}", config.path, config), True


# --- what any row must be ------------------------------------------------------------------------------------------


def _check_column(columns: list[str], path: Path | str, config: DataConfig) -> None:
    if config.text_column not in columns:
        raise UserError(
            f"data.text_column {config.text_column!r} is not in {str(path)!r}; its columns are {', '.join(columns)}"
        )


def _text(document: Any, where: str, path: Path | str, config: DataConfig) -> str:
    if not isinstance(document, str):
        raise _no_text(document, where, path, config)
    try:
        document.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(
            f"{where} of {str(path)!r} has {document[error.start]!r}, half of a character; remove it"
        ) from error
    return document


def _no_text(value: Any, where: str, path: Path | str, config: DataConfig) -> UserError:
    if value is None or value != value:  # pandas writes a missing text as NaN
        return UserError(f"{where} of {str(path)!r} has no text: {config.text_column!r} is null; remove or fill it")
    return UserError(
        f"{where} of {str(path)!r}: column {config.text_column!r} holds {type(value).__name__}, not text; set "
        "data.text_column to a column of strings"
    )
