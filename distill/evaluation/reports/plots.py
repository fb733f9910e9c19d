"""Pictures. Nothing else imports matplotlib, so whoever draws one imports this module when it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from distill.evaluation.reports.cells import AXES, curves, samplers
from distill.evaluation.results import Evaluation, Row
from teachers.files import publish

COLOURS = {"teacher": "#3b6fb6", "student": "#d1495b", "real text": "#4f7a52"}
GREY = "#555555"


def evaluation_figure(evaluation: Evaluation) -> Figure:
    """Quality (see `Evaluation.quality`) and bigram entropy against steps.

    The teacher at more steps than the student is tried at is a horizontal line, and so is real text.
    """
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2)
    quality = evaluation.quality
    for axes, key in ((left, quality), (right, "bigram_entropy")):
        _draw_curves(axes, evaluation, key, band=key == quality)
    if all(getattr(row, quality) > 0 for row in evaluation.rows):
        left.set_yscale("log")
        plain_log_ticks(left.yaxis)
    left.set_ylabel(f"{AXES[quality]} (lower is better)")
    left.set_title("Quality", loc="left", fontweight="bold")
    right.set_ylabel("bigram entropy (nats)")
    right.set_title("Diversity", loc="left", fontweight="bold")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    sampling = evaluation.sampling
    figure.supxlabel(
        f"{sampling.size}, {samplers(evaluation)} sampler, "
        f"{sampling.draw} draws; band: 95% bootstrap interval",
        fontsize=8.5, color=GREY,
    )  # fmt: skip
    return figure


def _draw_curves(axes: Axes, evaluation: Evaluation, key: str, band: bool) -> None:
    """One figure of all models against steps, with its interval as a band where there is one."""
    lines, limit = curves(evaluation)
    for model, rows in lines.items():
        steps, colour = [row.steps for row in rows], COLOURS[model]
        values = [getattr(row, key) for row in rows]
        axes.plot(steps, values, color=colour, marker="o", markersize=5, linewidth=2, label=model)
        if band:
            low, high = zip(*(getattr(row, f"{key}_ci") for row in rows), strict=True)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    if limit is not None:
        label = f"teacher, {limit.steps:,} steps"
        axes.axhline(getattr(limit, key), color=COLOURS["teacher"], linestyle="--", linewidth=1.4, label=label)
    if evaluation.reference is not None:
        draw_real_text(axes, getattr(evaluation.reference, key))
    _finish_curves(axes, [row for rows in lines.values() for row in rows])


def draw_real_text(axes: Axes, value: float | None) -> None:
    """A line for real text, where it has that figure."""
    if value is not None:
        axes.axhline(value, color=COLOURS["real text"], linestyle=":", linewidth=1.8, label="real text")


def _finish_curves(axes: Axes, rows: list[Row]) -> None:
    ticks = sorted({row.steps for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("sampling steps")
    axes.minorticks_off()
    lighten(axes)


def plot_training(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw what metrics.jsonl holds against updates: the losses, and what the watch measured of student and teacher."""
    names = ["student/loss", "critic/loss", "watch/judge_perplexity", "watch/bigram_entropy"]
    present = [name for name in names if any(name in line for line in lines)]
    if not present:
        return
    figure = new_figure(4 * len(present), 3.4)
    for axes, name in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        teacher = name.replace("watch/", "watch/teacher_")
        for key, who in ((name, "student"), (teacher, "teacher")):
            points = [(line["update"], line[key]) for line in lines if key in line]
            if points and (key == name or teacher != name):
                axes.plot(*zip(*points, strict=True), color=COLOURS[who], linewidth=1.6, label=who)
        axes.set_title(name.removeprefix("watch/").replace("_", " "), loc="left", fontweight="bold", fontsize=10)
        axes.set_xlabel("update")
        lighten(axes)
        if teacher != name:
            axes.legend(frameon=False, fontsize=8.5)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    publish(path, lambda partial: figure.savefig(partial, format="png"))


def lighten(axes: Axes) -> None:
    """A thin grid, and no frame above or on the right."""
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def plain_log_ticks(axis: Axis) -> None:
    """Label a log axis with plain numbers, densely enough for a range of less than a decade."""
    low, high = axis.get_view_interval()
    digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=digits, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
