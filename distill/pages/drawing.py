"""Where on the page a plot's marks stand: numbers, of which a template makes SVG. No text becomes markup here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.pages.labels import Label, Place, placed
from distill.pages.scale import Scale, tick_text

if TYPE_CHECKING:
    from distill.pages.chart import Axis, Chart, Curve, Mark

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 446, 36, 252
"""Of the frame that figures are drawn in; around it are its ticks and the names of its axes."""
LINE, LETTER, GAP = (
    22.0,
    7.2,
    10.0,
)  # pixels of a tick's name: its height, a letter's width, and the gap from one to the next
SHAPES = {
    "circle": "M-3.8 0a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0 -7.6 0z",
    "diamond": "M0 -5.2L5.2 0L0 5.2L-5.2 0z",
    "square": "M-3.7 -3.7H3.7V3.7H-3.7z",
    "triangle": "M0 -4.8L4.8 3.7H-4.8z",
}
"""Of marks, so that curves differ in more than their colour."""


@dataclass(frozen=True)
class Path:
    """A line, an area or a bar, by SVG's ``d``."""

    d: str
    tone: str
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A mark at its place, which says its ``note`` when it is pointed at."""

    x: float
    y: float
    d: str
    tone: str
    note: str


@dataclass(frozen=True)
class Tick:
    """A tick at its place along its axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Key:
    """A line of the legend; ``d`` is the shape of its marks, empty where it has none."""

    name: str
    tone: str
    d: str
    line: bool
    dashed: bool


class Drawing:
    """A plot as a template reads it."""

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM

    def __init__(self, chart: Chart):
        (low, high), (bottom, top) = chart.limits
        self.chart = chart
        self.x = Scale(low, high, LEFT, RIGHT, chart.x.log)
        self.y = Scale(bottom, top, BOTTOM, TOP, chart.y.log)

    @property
    def ticks_across(self) -> list[Tick]:
        """Of the horizontal axis."""
        return _ticks(self.x, self.chart.x, lambda value: len(tick_text(value)) * LETTER + GAP)

    @property
    def ticks_up(self) -> list[Tick]:
        """Of the vertical axis."""
        return _ticks(self.y, self.chart.y, lambda _: LINE)

    @property
    def levels(self) -> list[Path]:
        """Straight lines across the whole frame, where they are within it."""
        paths = []
        for level in self.chart.levels:
            scale = self.x if level.upright else self.y
            if scale.low <= level.value <= scale.high:
                at = scale(level.value)
                d = f"M{at} {TOP}V{BOTTOM}" if level.upright else f"M{LEFT} {at}H{RIGHT}"
                paths.append(Path(d, level.tone, True))
        return paths

    @property
    def bands(self) -> list[Path]:
        """Areas between the ends of intervals."""
        return [Path(self._area(curve), curve.tone) for curve in self.chart.curves if curve.band and self._ends(curve)]

    @property
    def bars(self) -> list[Path]:
        """Intervals of curves that show them one by one."""
        return [
            Path(f"M{self.x(mark.x)} {self._up(mark.ends[0])}V{self._up(mark.ends[1])}", curve.tone)
            for curve in self.chart.curves
            if not curve.band
            for mark in self._shown(curve)
            if mark.ends is not None
        ]

    @property
    def lines(self) -> list[Path]:
        """Through the marks of every curve that is a line."""
        return [
            Path("M" + "L".join(self._points(curve)), curve.tone, curve.dashed)
            for curve in self.chart.curves
            if curve.line and self._shown(curve)
        ]

    @property
    def dots(self) -> list[Dot]:
        """The marks."""
        return [
            Dot(self.x(mark.x), self.y(mark.y), SHAPES[curve.shape], curve.tone, mark.note)
            for curve in self.chart.curves
            if curve.dots
            for mark in self._shown(curve)
        ]

    @property
    def labels(self) -> list[Place]:
        """What stands beside marks, as far as there is room."""
        wanted, marks = [], []
        for curve in self.chart.curves:
            for mark in self._shown(curve):
                at = self.x(mark.x), self.y(mark.y)
                marks.append(at)
                if mark.label:
                    wanted.append(Label(*at, mark.label, curve.tone))
        return placed(wanted, marks, (LEFT, TOP, RIGHT, BOTTOM))

    @property
    def legend(self) -> list[Key]:
        """What the colours and shapes stand for, each name once."""
        keys = [
            Key(curve.name, curve.tone, SHAPES[curve.shape] if curve.dots else "", curve.line, curve.dashed)
            for curve in self.chart.curves
        ]
        keys += [Key(level.name, level.tone, "", True, True) for level in self.chart.levels]
        return list({key.name: key for key in reversed(keys) if key.name}.values())[::-1]

    def _shown(self, curve: Curve) -> Iterator[Mark]:
        """The marks within the frame."""
        for mark in curve.marks:
            inside = self.x.low <= mark.x <= self.x.high and self.y.low <= mark.y <= self.y.high
            if inside:
                yield mark

    def _ends(self, curve: Curve) -> list[Mark]:
        return [mark for mark in self._shown(curve) if mark.ends is not None]

    def _points(self, curve: Curve) -> list[str]:
        return [f"{self.x(mark.x)} {self.y(mark.y)}" for mark in self._shown(curve)]

    def _area(self, curve: Curve) -> str:
        ends = [(self.x(mark.x), *map(self._up, mark.ends)) for mark in self._shown(curve) if mark.ends is not None]
        there = [f"{x} {low}" for x, low, _ in ends]
        back = [f"{x} {high}" for x, _, high in reversed(ends)]
        return "M" + "L".join(there + back) + "Z"

    def _up(self, value: float) -> float:
        """The height of an interval's end, which may lie beyond the frame."""
        return self.y(min(max(value, self.y.low), self.y.high))


def _ticks(scale: Scale, axis: Axis, room: Callable[[float], float]) -> list[Tick]:
    values = scale.ticks() if axis.ticks is None else axis.ticks
    return [Tick(scale(value), tick_text(value)) for value in scale.apart(values, room)]
