"""A task's picture. It needs matplotlib, so whoever draws one imports this module when it does."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.evaluation.reports.plots import COLOURS, caption, lighten, new_figure, plain_log_ticks
from distill.evaluation.tasks.results import TaskEvaluation, TaskRow

MARKS = ["o-", "s--", "^-.", "D:", "v-", "P--"]
"""A rule's, in the order of the curves of a model."""


def task_figure(evaluation: TaskEvaluation) -> Figure:
    """Accuracy against passes a question, and against tokens a pass; a line for each model with each rule."""
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in ((left, "nfe", "passes a question"), (right, "tpf", "tokens a forward pass")):
        _draw_curves(axes, evaluation, key)
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel(label)
        lighten(axes)
    left.set_ylabel("right answers, %")
    left.set_title("Accuracy against passes", loc="left", fontweight="bold")
    right.set_title("Accuracy against parallelism", loc="left", fontweight="bold")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3), frameon=False)
    caption(
        figure,
        f"{evaluation.task.questions} questions of {evaluation.task.name}, checked by {evaluation.task.checker}; "
        "band: 95% interval",
    )
    return figure


def _draw_curves(axes: Axes, evaluation: TaskEvaluation, key: str) -> None:
    """Every curve against one of a row's figures, each with its band."""
    drawn: dict[str, int] = {}
    for curve in evaluation.curves:
        rows = [row for row in evaluation.rows if (row.model, row.sampler) == (curve.model, curve.sampler)]
        mark = MARKS[drawn.setdefault(curve.model, 0) % len(MARKS)]
        drawn[curve.model] += 1
        _draw_curve(axes, sorted(rows, key=lambda row: getattr(row, key)), key, mark)


def _draw_curve(axes: Axes, rows: list[TaskRow], key: str, mark: str) -> None:
    places, colour = [getattr(row, key) for row in rows], COLOURS[rows[0].model]
    axes.plot(
        places, [100 * row.accuracy for row in rows], mark, color=colour, markersize=5, linewidth=1.8,
        label=f"{rows[0].model}, {rows[0].sampler}",
    )  # fmt: skip
    low, high = zip(*(row.accuracy_ci for row in rows), strict=True)
    axes.fill_between(
        places, [100 * end for end in low], [100 * end for end in high], color=colour, alpha=0.12, linewidth=0
    )
