"""A task: right answers against passes."""

from __future__ import annotations

from distill.evaluation.reports.html.rows import SHAPES, tone
from distill.evaluation.reports.tasks import LEFT, columns, table_rows, task_caption
from distill.evaluation.tasks.results import TaskEvaluation
from distill.pages.blocks import Table
from distill.pages.chart import Axis, Chart, Curve, Mark
from distill.runtime.result_files import as_json


def task_charts(evaluation: TaskEvaluation, owner: str = "") -> list[Chart]:
    """Accuracy against passes a question, and against tokens a pass."""
    return [
        _chart(
            evaluation, "nfe", "passes of the network for one question", "Further up and to the left is better.", owner
        ),
        _chart(evaluation, "tpf", "tokens written in one pass", "Further up and to the right is better.", owner),
    ]


def _chart(evaluation: TaskEvaluation, key: str, label: str, caption: str, owner: str) -> Chart:
    task = evaluation.task
    against = "passes" if key == "nfe" else "parallelism"
    return Chart(
        name=f"{task.name}: accuracy against {against}",
        caption=f"{caption} {task.questions:,} questions, checked by {task.checker}; bands are 95% intervals.",
        x=Axis(label, log=True, ticks=tuple(sorted({round(getattr(row, key), 1) for row in evaluation.rows}))),
        y=Axis("right answers, %"),
        curves=tuple(_curve(evaluation, curve.model, curve.sampler, key) for curve in evaluation.curves),
        owner=owner,
    )


def _curve(evaluation: TaskEvaluation, model: str, sampler: str, key: str) -> Curve:
    rows = [row for row in evaluation.rows if (row.model, row.sampler) == (model, sampler)]
    rules = [curve.sampler for curve in evaluation.curves if curve.model == model]
    marks = [
        Mark(
            getattr(row, key), 100 * row.accuracy,
            f"{model}, {sampler}, {row.steps:,} steps: {row.accuracy:.1%} in {row.nfe:.1f} passes",
            ends=(100 * row.accuracy_ci[0], 100 * row.accuracy_ci[1]),
        )
        for row in sorted(rows, key=lambda row: getattr(row, key))
    ]  # fmt: skip
    shapes = [SHAPES.get(model, "square"), "square", "triangle"]
    number = rules.index(sampler)
    return Curve(
        f"{model}, {sampler}", tone(model), tuple(marks), dashed=number > 0, shape=shapes[min(number, len(shapes) - 1)]
    )


def task_block(evaluation: TaskEvaluation, owner: str = "") -> Table:
    """All rows of a task."""
    return Table(
        name=f"{owner + ': ' if owner else ''}Task {evaluation.task.name}",
        caption=task_caption(evaluation),
        columns=columns(evaluation),
        rows=table_rows(evaluation),
        left=LEFT,
        tones=[tone(row.model) for row in evaluation.rows],
        records=[as_json(row) for row in evaluation.rows],
    )
