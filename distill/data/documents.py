"""Documents of a corpus, read as a stream: text, JSON and Parquet files, folders of them, saved and hub datasets."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from distill.config import DataConfig
from distill.data.layout import CorpusFile, corpus_files
from distill.data.tables import AT_ONCE, TableRow, not_utf8, read_hub, read_table, source_parts, unreadable
from teachers.errors import UserError
from teachers.source import parse_source

Chunk = tuple[str, bool]
"""Text, and whether a document ends with it."""
BYTE_ORDER_MARK = "\ufeff"


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
    return hashlib.sha256(json.dumps([*source_parts(config), config.text_column]).encode()).hexdigest()


def _chunks(config: DataConfig) -> Iterator[Chunk]:
    columns = {"data.text_column": config.text_column}
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        for row in read_hub(source.path, source.revision, config, columns):
            yield _text(row, config), True
        return
    for file in corpus_files(Path(source.path), config):
        if file.kind == "text":
            yield from _read_text(file.path, config)
        else:
            for row in read_table(file, columns):
                yield _document(row, file, config), True


# --- text ----------------------------------------------------------------------------------------------------------


def _read_text(path: Path, config: DataConfig) -> Iterator[Chunk]:
    try:
        yield from _characters(path, config)
    except OSError as error:
        raise unreadable(path, error) from error


def _characters(path: Path, config: DataConfig) -> Iterator[Chunk]:
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
                raise not_utf8(path, error, position - pending + error.start) from error
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


# --- rows ----------------------------------------------------------------------------------------------------------


def _document(row: TableRow, file: CorpusFile, config: DataConfig) -> str:
    value = row.values[config.text_column]
    texts = list(value.values()) if isinstance(value, dict) else value
    if file.kind == "json" and isinstance(texts, list) and all(t is None or isinstance(t, str) for t in texts):
        raise UserError(
            f"{file.path} is written by columns: {config.text_column!r} holds {type(value).__name__}, not text; write "
            "it by rows, with pandas to_json(…, orient='records', lines=True)"
        )
    return _text(row, config)


def _text(row: TableRow, config: DataConfig) -> str:
    value = row.values[config.text_column]
    if isinstance(value, str):
        return row.checked(value)
    if value is None or value != value:  # pandas writes a missing text as NaN
        raise UserError(f"{row.place} has no text: {config.text_column!r} is null; remove or fill it")
    raise UserError(
        f"{row.place}: column {config.text_column!r} holds {type(value).__name__}, not text; set "
        "data.text_column to a column of strings"
    )
