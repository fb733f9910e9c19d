"""Pictures. Nothing else imports matplotlib, so whoever draws one imports this module when it does."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis as Scale
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from distill.evaluation.reports.cells import AXES, curves, samplers
from distill.evaluation.reports.frontier import is_curved
from distill.evaluation.results import Axis, Evaluation, Frontier, Row
from teachers.files import publish

COLOURS = {"teacher": "#3b6fb6", "student": "#d1495b", "real text": "#4f7a52"}
GREY = "#555555"
CHARACTERS = 15
"""Of a caption to an inch [own]."""
POINTS, LINES = "osD^vP", ("-", "--", ":", "-.")
"""Of a model's curves, from the fewest steps on."""


def evaluation_figure(evaluation: Evaluation) -> Figure:
    """What of these an evaluation has: perplexity against entropy over temperatures, or against steps."""
    return frontier_figure(evaluation) if is_curved(evaluation) else steps_figure(evaluation)


def frontier_figure(evaluation: Evaluation) -> Figure:
    """Judge perplexity against each entropy, a curve over temperatures a model and number of steps.

    Real text is a vertical line, and a curve is read where it crosses this.
    """
    figure = new_figure(11, 4.8)
    for axes, axis in zip(figure.subplots(1, 2, sharey=True), ("bigram", "unigram"), strict=True):
        _draw_frontier(axes, evaluation, axis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.axes[0].set_ylabel("judge perplexity (lower is better)")
    caption(
        figure,
        f"{evaluation.sampling.size}, {samplers(evaluation)} sampler, {evaluation.sampling.draw} draws; a point a "
        "temperature; bars: 95% bootstrap intervals where the entropy is that of real text",
    )
    return figure


def _draw_frontier(axes: Axes, evaluation: Evaluation, axis: Axis) -> None:
    """Perplexity against one entropy."""
    axes.set_yscale("log")
    shown = [one for one in evaluation.frontier or () if one.axis == axis]
    counts = {model: [one.steps for one in shown if one.model == model] for model in ("teacher", "student")}
    for one in shown:
        rows = [row for row in evaluation.rows if _curve(row) == _curve(one)]
        place = counts[one.model].index(one.steps)
        axes.plot(
            [row.entropy(axis) for row in rows], [row.judge_perplexity for row in rows], color=COLOURS[one.model],
            marker=POINTS[place % len(POINTS)], linestyle=LINES[place % len(LINES)], markersize=5, linewidth=1.7,
            label=f"{one.model}, {one.steps:,} steps",
        )  # fmt: skip
        if one.judge_perplexity is not None and one.judge_perplexity_ci is not None:
            axes.plot([one.entropy] * 2, one.judge_perplexity_ci, color=COLOURS[one.model], linewidth=4, alpha=0.5)
    if shown:
        axes.axvline(shown[0].entropy, color=COLOURS["real text"], linestyle=":", linewidth=1.8, label="real text")
    axes.set_xlabel(f"{axis} entropy (nats)")
    plain_log_ticks(axes.yaxis)
    lighten(axes)


def _curve(part: Row | Frontier) -> tuple[str, str, int]:
    """Which curve a row is a point of, and a frontier a reading."""
    return part.model, part.sampler, part.steps


def steps_figure(evaluation: Evaluation) -> Figure:
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
    said = f"{sampling.size}, {samplers(evaluation)} sampler, {sampling.draw} draws; band: 95% bootstrap interval"
    caption(figure, said)
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


def caption(figure: Figure, text: str) -> None:
    """What the figure shows, below it, in lines that are no longer than it is wide."""
    figure.supxlabel(fill(text, int(CHARACTERS * figure.get_figwidth())), fontsize=8.5, color=GREY)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    publish(path, lambda partial: figure.savefig(partial, format="png"))


def lighten(axes: Axes) -> None:
    """A thin grid, and no frame above or on the right."""
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def plain_log_ticks(axis: Scale) -> None:
    """Label a log axis with plain numbers, densely enough for a range of less than a decade."""
    low, high = axis.get_view_interval()
    digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=digits, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
