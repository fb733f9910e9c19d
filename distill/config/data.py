"""The ``data`` section: what a row is, where rows are, and how long they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from distill.config.values import DataName
from teachers.section import Section
from teachers.source import parse_source

Format = Literal["text", "prompt_completion", "messages", "prompt_only"]
COLUMNS: dict[Format, tuple[str, ...]] = {
    "text": (),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "prompt_only": ("prompt",),
}
"""What a row of each format consists of, in TRL's words, beside a text's ``data.text_column``."""


class ColumnsConfig(Section):
    """The columns of prompted data, where they are not called as TRL calls them."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"

    def of(self, format: Format) -> dict[str, str]:
        """The setting that names a column → the column, for all that a format has."""
        return {f"data.columns.{name}": getattr(self, name) for name in COLUMNS[format]}


class DataConfig(Section):
    """A corpus: text, JSONL, Parquet, a folder of them, a saved dataset, a pinned hub name, or ``bundled:novels``.

    ``format`` says what a row is: text, or, as TRL has it, a prompt with its completion, a conversation whose last turn
    is the completion, or a prompt alone. ``length`` counts prompt and completion together; ``too_long`` says whether
    rows that are longer are refused or left out. ``tail`` is what the end-of-text tokens behind a completion may weigh.

    ``special_tokens`` says what a document of text that spells one of the tokenizer's special tokens holds: its letters
    ("text"), or the token ("tokens"), as of text with separators or chat turns written out. The mask is always letters.
    """

    path: str
    heldout: DataName | None = None
    format: Format = "text"
    columns: ColumnsConfig = ColumnsConfig()
    length: int = Field(ge=2)
    too_long: Literal["refuse", "drop"] = "refuse"
    tail: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    pack: bool = True
    text_column: str = "text"
    split: str = "train"
    special_tokens: Literal["text", "tokens"] = "text"
    revision: str | None = None
    heldout_fraction: float = Field(default=0.02, gt=0, lt=1)

    @model_validator(mode="after")
    def _pinned(self) -> DataConfig:
        parse_source(self.path, self.revision, "dataset")
        return self

    @model_validator(mode="after")
    def _format(self) -> DataConfig:
        default = ColumnsConfig()
        for name in ColumnsConfig.model_fields:
            if name not in COLUMNS[self.format] and getattr(self.columns, name) != getattr(default, name):
                has = ", ".join(f"columns.{own}" for own in COLUMNS[self.format]) or "text_column"
                raise ValueError(
                    f"columns.{name} does not go with format {self.format!r}, which has {has}; leave it out"
                )
        if self.prompted and not self.pack:
            raise ValueError(f"pack is false, but a row of format {self.format!r} is never packed; leave it out")
        if self.prompted and self.text_column != "text":
            raise ValueError(f"text_column is of format 'text'; of {self.format!r}, set columns")
        return self

    @property
    def prompted(self) -> bool:
        """Whether rows have prompts."""
        return self.format != "text"
