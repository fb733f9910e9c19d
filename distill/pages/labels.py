"""Texts beside the marks of a plot, where they cover neither marks nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
LETTER, HEIGHT = 6.4, 12.0  # of a label, in pixels
AROUND = [(1, -0.7), (-1, -0.7), (1, 0.9), (-1, 0.9), (0, -1.25), (0, 1.45), (1.4, 0.1), (-1.4, 0.1)]
"""Where a label may stand from its mark: how far to the right, and how many lines down; the best first."""
GAP = 7.0


@dataclass(frozen=True)
class Label:
    """A text that belongs to the mark at (x, y)."""

    x: float
    y: float
    text: str
    tone: str


@dataclass(frozen=True)
class Place:
    """The middle of a text's lower edge."""

    x: float
    y: float
    text: str
    tone: str


def placed(labels: Sequence[Label], marks: Sequence[tuple[float, float]], frame: Box) -> list[Place]:
    """The labels that have a free place, each beside its mark; what finds none is left to the legend."""
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    places = []
    for label in labels:
        box = next((box for box in _candidates(label) if _is_free(box, taken, frame)), None)
        if box is not None:
            taken.append(box)
            places.append(Place(round((box[0] + box[2]) / 2, 1), round(box[3] - 2.5, 1), label.text, label.tone))
    return places


def _candidates(label: Label) -> list[Box]:
    half = len(label.text) * LETTER / 2
    boxes = []
    for right, down in AROUND:
        x, y = label.x + right * (half + GAP - 1), label.y + down * HEIGHT
        boxes.append((x - half, y - HEIGHT / 2, x + half, y + HEIGHT / 2))
    return boxes


def _is_free(box: Box, taken: Sequence[Box], frame: Box) -> bool:
    inside = box[0] >= frame[0] and box[1] >= frame[1] - 4 and box[2] <= frame[2] + 8 and box[3] <= frame[3]
    return inside and all(
        box[2] <= other[0] or box[0] >= other[2] or box[3] <= other[1] or box[1] >= other[3] for other in taken
    )
