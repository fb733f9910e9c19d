"""What stands on a page. Each kind of block has a template of its name."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import quote

from distill.pages.chart import Chart
from distill.pages.drawing import Key


@dataclass(frozen=True)
class Block:
    """A part of a section."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Heading(Block):
    """Whose the blocks that follow are."""

    kind = "heading"
    name: str


@dataclass(frozen=True)
class Prose(Block):
    """Paragraphs; with ``big``, what a reader should take home."""

    kind = "prose"
    paragraphs: tuple[str, ...]
    big: bool = False


@dataclass(frozen=True)
class Card:
    """One thing's main figure under its name, and beneath it more of them, each with what it is."""

    name: str
    tone: str
    figure: str
    unit: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cards(Block):
    """Things to be compared."""

    kind = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Charts(Block):
    """Plots side by side, ``across`` in a row where the window is wide; ``together``: with one legend for all."""

    kind = "charts"
    charts: tuple[Chart, ...]
    across: int = 2
    together: bool = False

    @property
    def legend(self) -> list[Key]:
        """Of all plots, where they have one together."""
        keys = [key for chart in self.charts for key in chart.drawing.legend] if self.together else []
        return list({key.name: key for key in keys}.values())


@dataclass(frozen=True)
class Table(Block):
    """A table that can be sorted, and downloaded.

    Attributes:
        left: columns of text; all others hold figures.
        tones: of each row, a colour's name or "".
        records: the same rows with all digits and whatever else is known, for the file.
    """

    kind = "table"
    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str]
    tones: Sequence[str]
    records: Sequence[dict[str, Any]]

    @property
    def file(self) -> str:
        """What the download is called."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()) + ".csv"

    @property
    def link(self) -> str:
        """The download, all of it within its address."""
        return "data:text/csv;charset=utf-8," + quote(csv_text(self.records))


@dataclass(frozen=True)
class Text:
    """What was written, under a heading: ``after`` its prompt, which is shown apart."""

    name: str
    tone: str
    note: str
    text: str


@dataclass(frozen=True)
class Answers(Block):
    """Texts after the same prompt, in pairs that face each other.

    Attributes:
        owner: whose they are, where several stand on one page.
        prompt: "" for none.
        pairs: None where one of a pair is missing.
    """

    kind = "answers"
    owner: str
    prompt: str
    pairs: tuple[tuple[Text | None, Text | None], ...]


@dataclass(frozen=True)
class Piece:
    """A token as it reads, and the pass that wrote it: 1, 2, …; 0 for what was given.

    Attributes:
        earlier: what stood there before, likewise, from the first to the last; "" where the place was blank again.
    """

    text: str
    written: int
    earlier: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Strip(Block):
    """A canvas that fills pass by pass; ``owner`` as of `Answers`."""

    kind = "strip"
    name: str
    owner: str
    tone: str
    caption: str
    pieces: tuple[Piece, ...]

    @property
    def passes(self) -> int:
        """How many there were."""
        return max((piece.written for piece in self.pieces), default=0)

    def shade(self, written: int) -> float:
        """A pass as a share of all, from 0 for the first to 1 for the last."""
        return round((written - 1) / max(1, self.passes - 1), 3)


@dataclass(frozen=True)
class Facts(Block):
    """Names and what they are."""

    kind = "facts"
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Listing(Block):
    """Text letter by letter, such as a config."""

    kind = "listing"
    text: str


@dataclass(frozen=True)
class Folded(Block):
    """Blocks that are shown when their name is chosen."""

    kind = "folded"
    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, with a sentence or two on what they show. ``key`` is the place's name in the page."""

    key: str
    name: str
    intro: str
    blocks: tuple[Block, ...] = field(default=())


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Rows as a file: a column for each name that any of them has; an interval is a column for each of its ends."""
    rows = [_flat(record) for record in records]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and len(value) == 2:
            flat |= {f"{prefix}{name}.low": value[0], f"{prefix}{name}.high": value[1]}
        else:
            flat[f"{prefix}{name}"] = value
    return flat
