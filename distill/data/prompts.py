"""Prompts and completions as text, from the rows of a dataset: TRL's formats, the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig
from distill.data.chat import Message, opened, rendered
from distill.data.documents import Chunk
from distill.data.layout import corpus_files
from distill.data.tables import TableRow, read_hub, read_table
from teachers.errors import UserError
from teachers.source import parse_source


@dataclass(frozen=True)
class Exchange:
    """A row as text: what is given, and what is to be written.

    Attributes:
        completion: None where a row has a prompt alone.
        place: where the row stands, for messages.
    """

    prompt: str
    completion: str | None
    place: str


def read_exchanges(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Exchange]:
    """Every row of prompted data.

    A prompt or a completion is a string, or messages, which the tokenizer's chat template puts into words. A completion
    ends in front of an end-of-text token with which it ends.

    Raises:
        UserError: missing or unreadable data, no such column, a value that is none, or a chat template that is missing
            or fails.
    """
    for row in _rows(config):
        prompt, completion = _texts(row, config, tokenizer)
        if completion is not None:
            completion = row.checked(_without_end(completion, row, tokenizer))
        yield Exchange(row.checked(prompt), completion, row.place)


def read_texts(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Chunk]:
    """Every prompt and every completion, each a document; arguments and errors as of `read_exchanges`."""
    for row in read_exchanges(config, tokenizer):
        yield row.prompt, True
        if row.completion is not None:
            yield row.completion, True


def _rows(config: DataConfig) -> Iterator[TableRow]:
    columns = config.columns.of(config.format)
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        yield from read_hub(source.path, source.revision, config, columns)
        return
    for file in corpus_files(Path(source.path), config):
        if file.kind == "text":
            raise UserError(
                f"{file.path} is text, but data.format {config.format!r} is made of rows; give JSON lines or Parquet, "
                "or set data.format to text"
            )
        yield from read_table(file, columns)


def _texts(row: TableRow, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    columns = config.columns
    if config.format == "messages":
        turns = _messages(row, columns.messages)
        if turns[-1]["role"] != "assistant":
            raise UserError(
                f"{row.place}: the last of {columns.messages!r} has role {turns[-1]['role']!r}, but what is to be "
                "written is an assistant's; remove the row, or what follows the assistant's last turn"
            )
        if len(turns) == 1:
            raise UserError(
                f"{row.place}: {columns.messages!r} holds an assistant's turn and nothing before it; remove the row, "
                "or add what the turn answers"
            )
        return _halves(row, turns[:-1], turns[-1:], tokenizer)
    if config.format == "prompt_only":
        return prompt_text(row, columns.prompt, tokenizer), None
    prompt = _value(row, columns.prompt)
    completion = _value(row, columns.completion)
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, str) or isinstance(completion, str):
        raise UserError(
            f"{row.place}: one of {columns.prompt!r} and {columns.completion!r} is text and the other messages; give "
            "both as text, or both as messages"
        )
    return _halves(row, prompt, completion, tokenizer)


def prompt_text(row: TableRow, column: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt alone, as a string or as messages.

    Raises:
        UserError: see `read_exchanges`.
    """
    prompt = _value(row, column)
    return row.checked(prompt if isinstance(prompt, str) else opened(tokenizer, prompt, row.place))


# --- what a column holds -------------------------------------------------------------------------------------------


def _value(row: TableRow, column: str) -> str | list[Message]:
    """A string, or messages."""
    value = row.values[column]
    return value if isinstance(value, str) else _messages(row, column)


def _messages(row: TableRow, column: str) -> list[Message]:
    value = row.values[column]
    if value is None or value != value:  # pandas writes what is missing as NaN
        raise UserError(f"{row.place} has no {column!r}: it is null; remove or fill it")
    if not isinstance(value, list):
        raise UserError(f"{row.place}: column {column!r} holds {type(value).__name__}, neither text nor messages")
    if not value:
        raise UserError(f"{row.place}: column {column!r} holds no message; remove the row, or fill it")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UserError(
                f"{row.place}: message {number} of {column!r} is not one with a role and a content of text; write "
                '{"role": …, "content": …}'
            )
    return [{key: given for key, given in message.items() if given is not None} for message in value]


# --- the chat template ---------------------------------------------------------------------------------------------


def _halves(
    row: TableRow, before: list[Message], written: list[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str]:
    """A conversation up to what opens the assistant's turn, and what comes after that."""
    prompt = opened(tokenizer, before, row.place)
    whole = rendered(tokenizer, [*before, *written], row.place)
    if not whole.startswith(prompt):
        raise UserError(
            f"{row.place}: the tokenizer's chat template does not write the conversation as its prompt and then the "
            "last turn, so that nobody can tell what is to be written; give prompt and completion as text"
        )
    return prompt, whole[len(prompt) :]


def _without_end(completion: str, row: TableRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The completion up to an end-of-text token with which it ends, or after which there is only white space."""
    end = tokenizer.eos_token
    if not isinstance(end, str):
        return completion
    text, _, rest = completion.partition(end)
    if rest.strip():
        raise UserError(
            f"{row.place}: the completion goes on after the end-of-text token {end!r}; remove what follows, or make it "
            "a row of its own"
        )
    return text
