"""Plots, as what they show; `distill.pages.drawing` says where on the page that stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.pages.drawing import Drawing
from distill.pages.scale import Interval, extent

Limits = tuple[Interval, Interval]
"""Of the horizontal axis and of the vertical one."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows. ``ticks`` are the figures to name; None for ones that are easy to read."""

    label: str
    log: bool = False
    ticks: tuple[float, ...] | None = None

    def holds(self, value: float) -> bool:
        """Whether a figure has a place on it."""
        return math.isfinite(value) and (value > 0 or not self.log)


@dataclass(frozen=True)
class Mark:
    """A point of a curve.

    Attributes:
        note: what it says when it is pointed at.
        label: what stands beside it, if anything.
        ends: of an interval of ``y``.
    """

    x: float
    y: float
    note: str
    label: str = ""
    ends: Interval | None = None


@dataclass(frozen=True)
class Curve:
    """Marks under one name and in one ``tone``, which is a colour that the style sheet knows.

    Attributes:
        line: whether the marks are joined. dots: whether they are shown.
        band: whether intervals are drawn as an area, and not as bars.
    """

    name: str
    tone: str
    marks: tuple[Mark, ...]
    line: bool = True
    dots: bool = True
    band: bool = True
    dashed: bool = False
    shape: str = "circle"


@dataclass(frozen=True)
class Level:
    """A straight line across the plot at a figure of its vertical axis, or of its horizontal one (``upright``)."""

    name: str
    tone: str
    value: float
    upright: bool = False


@dataclass(frozen=True)
class Chart:
    """A plot, with what a reader is told of it.

    Attributes:
        name: its title. caption: one sentence on what is seen, and which direction is better.
        owner: whose it is, where several stand side by side.
        frame: the limits of its axes; None for those of its own marks.
    """

    name: str
    caption: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    levels: tuple[Level, ...] = ()
    owner: str = ""
    frame: Limits | None = None

    @property
    def limits(self) -> Limits:
        """Of both axes."""
        if self.frame is not None:
            return self.frame
        return self._limits(self.x, "x", upright=True), self._limits(self.y, "y", upright=False)

    @property
    def drawing(self) -> Drawing:
        """The plot as a template reads it."""
        return Drawing(self)

    def _limits(self, axis: Axis, coordinate: str, upright: bool) -> Interval:
        values = [getattr(mark, coordinate) for curve in self.curves for mark in curve.marks]
        values += [level.value for level in self.levels if level.upright is upright]
        return extent([value for value in values if axis.holds(value)] or [1.0, 2.0], axis.log)


def alike(charts: Sequence[Chart]) -> list[Chart]:
    """The same plots with the same limits, so that they can be compared side by side."""
    sides = list(zip(*(chart.limits for chart in charts), strict=True))
    across, up = ((min(low for low, _ in side), max(high for _, high in side)) for side in sides)
    return [replace(chart, frame=(across, up)) for chart in charts]
