"""Quality and diversity against what they cost: passes of the network, and seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from distill.evaluation.reports.cells import AXES, caption, columns, table_rows
from distill.evaluation.reports.html.rows import SHAPES, by_model, note, own_rows, tone
from distill.evaluation.results import Evaluation, Figures, Row
from distill.pages.blocks import Table
from distill.pages.chart import Axis, Chart, Curve, Level, Mark
from distill.runtime.result_files import as_json

KNOWN = {
    "samples", "judge_perplexity", "excess_nats", "divergence_nats", "unigram_entropy", "judge_unigram_entropy",
    "bigram_entropy",
}  # fmt: skip
"""Of `Figures`, those that have a plot of their own, or are no figure of a text."""


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


def other_charts(evaluation: Evaluation, owner: str = "") -> list[Chart]:
    """Every other figure that the texts have, against passes."""
    names = [field.name for field in fields(Figures) if not field.name.endswith("_ci") and field.name not in KNOWN]
    return [
        _chart(
            evaluation, name.replace("_", " ").capitalize(), name, "passes",
            "Near the line of real text is best.", owner,
        )
        for name in names
        if any(isinstance(getattr(row, name), int | float) for row in evaluation.rows)
    ]  # fmt: skip


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


def evaluation_table(evaluation: Evaluation, owner: str = "") -> Table:
    """All rows, those of real text first."""
    parts = ([] if evaluation.reference is None else [evaluation.reference]) + [
        *evaluation.rows,
        *(evaluation.served or ()),
    ]
    names = [part.model if isinstance(part, Row) else "real text" for part in parts]
    return Table(
        name=f"{owner + ': ' if owner else ''}All rows",
        caption=caption(evaluation),
        columns=columns(evaluation),
        rows=table_rows(evaluation),
        left=["model", "sampler"],
        tones=["real" if name == "real text" else tone(name) for name in names],
        records=[{"model": name} | as_json(part) for name, part in zip(names, parts, strict=True)],
    )
