"""Quality and diversity against what they cost: passes of the network, and seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from distill.evaluation.reports.cells import AXES, caption, columns, table_rows
from distill.evaluation.reports.html.rows import SHAPES, by_model, note, own_rows, tone
from distill.evaluation.reports.other_figures import Sheet, further_sheets
from distill.evaluation.results import Evaluation, Figures, Row
from distill.pages.blocks import Table
from distill.pages.chart import Axis, Chart, Curve, Level, Mark
from distill.runtime.result_files import as_json

KNOWN = {
    "samples", "judge_perplexity", "excess_nats", "divergence_nats", "unigram_entropy", "judge_unigram_entropy",
    "bigram_entropy",
}  # fmt: skip
"""Of `Figures`, those that have a plot of their own, or are no figure of a text."""
TELLING = {
    "mauve": "How near the texts are to real ones, at most 1: higher is better.",
    "energy_distance": "How far the texts are from real ones in the states of a network: lower is better.",
    "gradient_moment": "How far the texts are from real ones in the gradients of a network: lower is better.",
    "repetition_4": "How often a text repeats four tokens: near the line of real text is best.",
}
"""Of `Figures`, those that show at once what a perplexity hides."""


def quality_charts(evaluation: Evaluation, owner: str = "") -> list[Chart]:
    """Quality against passes and against seconds, each with the bigram entropy that it must be read with."""
    key, sampling = evaluation.quality, evaluation.sampling
    time = f"Time of sampling alone, in batches of {sampling.batch} on {sampling.device}."
    varied = "Near the line of real text is best; below it, texts say the same more often."
    return [
        _chart(evaluation, "Quality against passes", key, "passes", "Further down and to the left is better.", owner),
        _chart(evaluation, "Diversity against passes", "bigram_entropy", "passes", varied, owner),
        _chart(evaluation, "Quality against time", key, "seconds", f"{time} Further down and left is better.", owner),
        _chart(evaluation, "Diversity against time", "bigram_entropy", "seconds", varied, owner),
    ]


def telling_charts(evaluation: Evaluation, owner: str = "") -> list[Chart]:
    """Figures that show the known ways to a low perplexity without good text, against passes."""
    return [_other_chart(evaluation, name, owner) for name in TELLING if _is_known(evaluation, name)]


def other_charts(evaluation: Evaluation, owner: str = "") -> list[Chart]:
    """Every other figure that the texts have, against passes."""
    names = [field.name for field in fields(Figures) if not field.name.endswith("_ci") and field.name not in KNOWN]
    return [
        _other_chart(evaluation, name, owner)
        for name in names
        if name not in TELLING and _is_known(evaluation, name)
    ]  # fmt: skip


def _other_chart(evaluation: Evaluation, name: str, owner: str) -> Chart:
    told = TELLING.get(name, "Near the line of real text is best.")
    return _chart(evaluation, name.replace("_", " ").capitalize(), name, "passes", told, owner)


def _is_known(evaluation: Evaluation, name: str) -> bool:
    return any(isinstance(getattr(row, name), int | float) for row in evaluation.rows)


ACROSS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "passes": ("passes of the network for one text", lambda row: row.nfe),
    "seconds": ("seconds for one text", lambda row: row.seconds / row.samples),
}


def _chart(evaluation: Evaluation, name: str, key: str, across: str, caption: str, owner: str) -> Chart:
    label, place = ACROSS[across]
    rows = [row for row in own_rows(evaluation) if isinstance(getattr(row, key), int | float)]
    curves = [
        Curve(
            model, tone(model),
            tuple(
                Mark(place(row), getattr(row, key), note(row, evaluation.quality, f"{model}, {row.steps:,} steps"),
                     ends=getattr(row, f"{key}_ci", None))
                for row in part
            ),
            shape=SHAPES.get(model, "square"),
        )
        for model, part in by_model(rows).items()
    ]  # fmt: skip
    levels = []
    if evaluation.reference is not None and (real := getattr(evaluation.reference, key)) is not None:
        levels.append(Level("real text", "real", real))
    ticks = tuple(sorted({round(row.nfe, 1) for row in rows})) if across == "passes" else None
    return Chart(
        name=name,
        caption=caption,
        x=Axis(label, log=True, ticks=ticks),
        y=Axis(AXES.get(key, key.replace("_", " ")), log=key == "judge_perplexity"),
        curves=tuple(curves),
        levels=tuple(levels),
        owner=owner,
    )


def evaluation_tables(evaluation: Evaluation, owner: str = "") -> list[Table]:
    """All rows, those of real text first; and what stands below them, see `further_sheets`."""
    real = [] if evaluation.reference is None else [evaluation.reference]
    parts = [*real, *evaluation.rows, *(evaluation.served or ())]
    names = [part.model if isinstance(part, Row) else "real text" for part in parts]
    records = [{"model": name} | as_json(part) for name, part in zip(names, parts, strict=True)]
    first = Sheet("All rows", columns(evaluation), table_rows(evaluation), caption(evaluation))
    tables = [_table(first, owner, records)]
    for sheet in further_sheets(evaluation):
        tables.append(_table(sheet, owner, [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]))
    return tables


def _table(sheet: Sheet, owner: str, records: list[dict[str, Any]]) -> Table:
    return Table(
        name=f"{owner + ': ' if owner else ''}{sheet.title}",
        caption=sheet.caption,
        columns=sheet.columns,
        rows=sheet.rows,
        left=["model", "measured", "sampler"],
        tones=["real" if row[0] == "real text" else tone(row[0]) for row in sheet.rows],
        records=records,
    )
