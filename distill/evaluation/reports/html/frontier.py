"""The frontier: quality against entropy, a curve for each model and number of steps over its temperatures."""

from __future__ import annotations

import math
from itertools import groupby

from distill.evaluation.reports.cells import AXES
from distill.evaluation.reports.frontier import TITLE, frontier_caption, frontier_columns, frontier_rows
from distill.evaluation.reports.html.rows import SHAPES, by_model, note, own_rows, tone
from distill.evaluation.results import Axis, Evaluation, Row
from distill.pages.blocks import Table
from distill.pages.chart import Axis as ChartAxis
from distill.pages.chart import Chart, Curve, Level, Mark
from distill.runtime.result_files import as_json

FAR = 2.5  # times the perplexity of the teacher's many steps, beyond which rows are left out of the plot [own]
NAMES: dict[Axis, str] = {"unigram": "unigram entropy of a text's tokens", "bigram": "bigram entropy of all texts"}


def frontier_charts(evaluation: Evaluation, owner: str = "") -> list[Chart]:
    """Over the unigram entropy, the field's axis, and over the bigram entropy, which tells collapse earlier."""
    return [_chart(evaluation, axis, owner) for axis in ("unigram", "bigram")]


def _chart(evaluation: Evaluation, axis: Axis, owner: str) -> Chart:
    key, rows = evaluation.quality, _near(evaluation)
    levels = []
    if evaluation.reference is not None:
        levels.append(Level("entropy of real text", "real", evaluation.reference.entropy(axis), upright=True))
    missing = len(evaluation.rows) - len(rows)
    left_out = f" {missing} rows of a much higher perplexity are left out." if missing else ""
    return Chart(
        name=f"Quality against {axis} entropy",
        caption="Lower is better, at the same place from left to right; to the left a text says the same more often. "
        f"Beside each curve stands its number of steps.{left_out}",
        x=ChartAxis(f"{NAMES[axis]}, nats"),
        y=ChartAxis(AXES[key], log=key == "judge_perplexity"),
        curves=tuple(_curves(rows, axis, key)),
        levels=tuple(levels),
        owner=owner,
    )


def _near(evaluation: Evaluation) -> list[Row]:
    """Rows whose quality is of the order of the best teacher's: a text of one step would squeeze all others."""
    if evaluation.quality != "judge_perplexity":
        return list(evaluation.rows)
    own = own_rows(evaluation)
    teacher = [row for row in own if row.model == "teacher"] or own
    limit = FAR * min(row.judge_perplexity for row in teacher)
    near = [row for row in evaluation.rows if row.judge_perplexity <= limit]
    return near if len(near) > 1 else list(evaluation.rows)


def _curves(rows: list[Row], axis: Axis, key: str) -> list[Curve]:
    """By model and number of steps, each from its least varied text to its most varied; the last is labelled."""
    curves = []
    for model, of_model in by_model(rows).items():
        for steps, group in groupby(sorted(of_model, key=lambda row: row.steps), key=lambda row: row.steps):
            part = sorted(group, key=lambda row: row.entropy(axis))
            marks = [
                Mark(row.entropy(axis), getattr(row, key), note(row, key, f"{model}, {steps:,} steps")) for row in part
            ]
            marks[-1] = Mark(marks[-1].x, marks[-1].y, marks[-1].note, f"{steps:,}")
            curves.append(Curve(model, tone(model), tuple(marks), shape=SHAPES.get(model, "square")))
    return [curve for curve in curves if all(math.isfinite(mark.y) for mark in curve.marks)]


def frontier_table(evaluation: Evaluation, owner: str = "") -> list[Table]:
    """The perplexity where each curve has the entropy of real text; nothing where there is no curve."""
    rows = frontier_rows(evaluation)
    if not rows:
        return []
    names = frontier_columns(evaluation)
    table = Table(
        name=f"{owner + ': ' if owner else ''}{TITLE}",
        caption=frontier_caption(evaluation),
        columns=names,
        rows=rows,
        left=["entropy", "model"],
        tones=[tone(row[names.index("model")]) for row in rows],
        records=[as_json(one) for one in evaluation.frontier or ()],
    )
    return [table]
