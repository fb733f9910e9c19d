"""A comparison's two pictures; like `distill.evaluation.reports.plots`, to be imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from distill.comparison.reports.cells import quality_text
from distill.comparison.results import Comparison
from distill.comparison.summary import Summary, summarise
from distill.evaluation.reports.cells import AXES
from distill.evaluation.reports.plots import COLOURS, caption, draw_real_text, lighten, new_figure, plain_log_ticks
from distill.evaluation.results import Figures, Interval

PALETTE = (
    "#d1495b", "#0077bb", "#ee7733", "#009988", "#aa3377", "#b8860b", "#33bbee", "#66aa33", "#7a5195", "#8c564b",
    "#555555", "#cc6699",
)  # fmt: skip
MARKERS = "osD^vPX<>ph*"
DIRECTIONS = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
"""Where a label may stand from its point, the best first."""


@dataclass(frozen=True)
class Point:
    """Something to be labelled, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class Landmark:
    """What students are held against."""

    name: str
    short: str
    colour: str
    marker: str
    hollow: bool
    figures: Figures


def styles(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """A colour and a marker a label, whether or not its runs came through, so that two pictures agree."""
    labels = list(comparison.settings)
    return {label: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}


def frontier_figure(comparison: Comparison) -> Figure:
    """Quality against bigram entropy, a panel per number of steps.

    A marker is a mean over seeds with their range, the small ones are the seeds; below and right is better. The
    limits are those of three students or more; what lies far off is drawn at the edge, with its values.
    """
    summaries = summarise(comparison.runs, comparison.quality, comparison.sampling.temperature)
    steps = sorted({one.steps for one in summaries}) or sorted({row.steps for row in comparison.own_teacher})
    across = min(3, len(steps))
    down = math.ceil(len(steps) / across)
    figure = new_figure(4.9 * across + 1.2, 4.1 * down + 0.6)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(steps) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}  # an artist each, or matplotlib's container of a few
    labels = []
    for axes, count in zip(panels, steps, strict=False):
        here = [one for one in summaries if one.steps == count]
        labels.append((axes, _draw_panel(axes, comparison, here, count, handles)))
    names = [_verbatim(name) for name in handles]
    figure.legend(list(handles.values()), names, loc="outside right upper", frameon=False, fontsize=9)
    note = f"large: mean of {comparison.command.seeds} seeds, and their range; small: seeds"
    note = note if comparison.command.seeds > 1 else "one seed"
    caption(figure, f"budget {comparison.command.budget} a run; {note}")
    _label(figure, labels)
    return figure


def _draw_panel(
    axes: Axes, comparison: Comparison, summaries: list[Summary], steps: int, handles: dict[str, Any]
) -> list[Point]:
    """Students and landmarks at one number of steps; adds to the legend's handles, and returns what to label."""
    key, look = comparison.quality, styles(comparison)
    points = []
    for one in summaries:
        colour, marker = look[one.label]
        axes.scatter(one.entropies, one.values, s=9, color=colour, alpha=0.4, linewidth=0, zorder=2)
        bars = axes.errorbar(
            one.bigram_entropy, one.quality, _bar(one.quality, one.spread),
            _bar(one.bigram_entropy, one.entropy_spread), color=colour, marker=marker, markersize=7,
            markeredgecolor="white", markeredgewidth=0.6, elinewidth=0.7, capsize=0, linestyle="", zorder=3,
        )  # fmt: skip
        handles.setdefault(one.label, bars)
        points.append(Point(one.bigram_entropy, one.quality, one.label, colour))
    landmarks = _landmarks(comparison, steps)
    few = len(points) < 3  # too few to make a frame of their own
    spread = [(point.x, point.y) for point in points]
    spread += [(mark.figures.bigram_entropy, getattr(mark.figures, key)) for mark in landmarks if few]
    _fit(axes, [x for x, _ in spread], [y for _, y in spread], room=0.14 if few else 0.5)
    for mark in landmarks:
        point, handle = _draw_landmark(axes, mark, key)
        handles.setdefault(mark.name, handle)
        points.append(point)
    axes.set_title(f"{steps} step{'s' if steps > 1 else ''}", loc="left", fontweight="bold")
    axes.set_xlabel("bigram entropy (nats; higher is more diverse)")
    axes.set_ylabel(f"{AXES[key]} (lower is better)")
    return points


def _landmarks(comparison: Comparison, steps: int) -> list[Landmark]:
    """What students at so many steps are held against."""
    limit, marks = comparison.teacher_steps, []
    for row in comparison.own_teacher:
        if row.steps == steps:
            marks.append(Landmark("teacher, same steps", "teacher", "black", "s", False, row))
        elif row.steps == limit:
            marks.append(
                Landmark(f"teacher, many steps ({limit:,})", f"teacher, {limit:,}", "black", "s", True, row)
            )  # fmt: skip
    reference = comparison.reference
    if reference is not None and getattr(reference, comparison.quality) is not None:
        marks.append(Landmark("real text", "real text", COLOURS["real text"], "*", False, reference))
    return marks


def _draw_landmark(axes: Axes, mark: Landmark, key: str) -> tuple[Point, Artist]:
    """At its place, or at the edge with its values."""
    there = mark.figures.bigram_entropy, getattr(mark.figures, key)
    x, y = (
        min(max(value, low), high)
        for value, (low, high) in zip(there, (axes.get_xlim(), axes.get_ylim()), strict=True)
    )  # fmt: skip
    handle = axes.scatter(
        x, y, s=70, marker=mark.marker, color=mark.colour, zorder=2.5, linewidth=1.4, clip_on=False,
        facecolors="none" if mark.hollow else mark.colour,
    )  # fmt: skip
    values = f" ({there[0]:.2f}, {quality_text(there[1], key)})" if (x, y) != there else ""
    return Point(x, y, mark.short + values, mark.colour), handle


def speed_figure(comparison: Comparison) -> Figure:
    """Quality against seconds of sampling a sequence, a line per label over the numbers of steps."""
    key, look = comparison.quality, styles(comparison)
    figure = new_figure(8.6, 5.4)
    axes = figure.subplots()
    lines = {"teacher": [(row.seconds / row.samples, getattr(row, key), row.steps) for row in comparison.own_teacher]}
    for one in summarise(comparison.runs, key, comparison.sampling.temperature):
        lines.setdefault(one.label, []).append((one.seconds / one.samples, one.quality, one.steps))
    points = []
    for name, line in lines.items():
        colour, marker = ("black", "s") if name == "teacher" else look[name]
        x, y, _ = zip(*line, strict=True)
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.7, label=_verbatim(name), zorder=3)
        points += line
    real = None if comparison.reference is None else getattr(comparison.reference, key)
    draw_real_text(axes, real)
    heights = [y for _, y, _ in points] + ([] if real is None else [real])
    axes.set_xscale("log")
    _fit(axes, [x for x, *_ in points], heights)
    plain_log_ticks(axes.xaxis)
    axes.set_xlabel(f"seconds of sampling a sequence, in batches of {comparison.sampling.batch}")
    axes.set_ylabel(f"{AXES[key]} (lower is better)")
    axes.set_title("Quality against time; beside the teacher, its steps", loc="left", fontweight="bold")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    _label(figure, [(axes, [Point(x, y, f"{count:,}", "black") for x, y, count in lines["teacher"]])])
    return figure


def _verbatim(name: str) -> str:
    """A name as a legend shows it: dollars are no formula."""
    return name.replace("$", r"\$")


def _bar(mean: float, ends: Interval | None) -> list[list[float]] | None:
    return None if ends is None else [[mean - ends[0]], [ends[1] - mean]]


def _fit(axes: Axes, x: list[float], y: list[float], room: float = 0.14) -> None:
    """Limits around the points, not around their bars, ``room`` × their range on each side; y is log if positive."""
    y = [value for value in y if math.isfinite(value)]
    if min(y) > 0:
        factor = max(1.12, (max(y) / min(y)) ** room)
        axes.set_ylim(min(y) / factor, max(y) * factor)  # before the scale, which would look for limits of its own
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)
    else:
        margin = room * (max(y) - min(y)) or 1.0
        axes.set_ylim(min(y) - margin, max(y) + margin)
    if axes.get_xscale() == "log":
        axes.set_xlim(min(x) / 1.3, max(x) * 1.3)
    else:
        margin = max(room * (max(x) - min(x)), 0.02)
        axes.set_xlim(min(x) - margin, max(x) + margin)
    lighten(axes)


def _label(figure: Figure, panels: Sequence[tuple[Axes, list[Point]]]) -> None:
    """Write each text beside its point where it covers no other text and no point; leave it to the legend if nowhere.

    All measures are in pixels.
    """
    figure.draw_without_rendering()  # the layout is settled now; texts stay out of it
    figure.set_layout_engine("none")
    for axes, points in panels:
        unit = figure.dpi / 72  # pixels of a point
        at = [axes.transData.transform((point.x, point.y)) for point in points]
        taken = [Bbox.from_extents(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in at]
        for point, (x, y) in zip(points, at, strict=True):
            artist = axes.annotate(
                point.text, (point.x, point.y), (0, 0), textcoords="offset points", color=point.colour, fontsize=8,
                ha="center", va="center", zorder=4, path_effects=[withStroke(linewidth=2.2, foreground="white")],
                parse_math=False,
            )  # fmt: skip
            box = _place(artist, axes, (x, y), unit, taken)
            if box is not None:
                taken.append(box)


def _place(artist: Annotation, axes: Axes, at: tuple[float, float], unit: float, taken: Sequence[Bbox]) -> Bbox | None:
    """Move a text to the nearest free place around its point and return it; remove the text if there is none."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    assert isinstance(figure.canvas, FigureCanvasAgg), "see new_figure"
    renderer = figure.canvas.get_renderer()
    frame, size = axes.get_window_extent(renderer), artist.get_window_extent(renderer)
    for reach in (1, 2, 3.2):
        for right, up in DIRECTIONS:
            dx, dy = right * (size.width / 2 + 7 * unit * reach), up * (size.height / 2 + 4 * unit * reach)
            x, y = at[0] + dx, at[1] + dy
            box = Bbox.from_extents(
                x - size.width / 2, y - size.height / 2, x + size.width / 2, y + size.height / 2
            )  # fmt: skip
            if _is_free(box, taken, frame):
                artist.set_position((dx / unit, dy / unit))
                return box
    artist.remove()
    return None


def _is_free(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> bool:
    if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        return False
    return all(box.x1 <= b.x0 or box.x0 >= b.x1 or box.y1 <= b.y0 or box.y0 >= b.y1 for b in taken)
