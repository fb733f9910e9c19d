"""The frontier of an evaluation as a table: perplexity where text is as varied as real text."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Axis, Evaluation, Frontier, Interval

TITLE = "At the entropy of real text"
NOT_REACHED = "not reached"


def frontier_columns(evaluation: Evaluation) -> list[str]:
    """Headings; a student's perplexity stands beside what part it is of the teacher's."""
    names = ["entropy", "model", "steps", "NFE", "judge PPL", "95% interval"]
    shown = evaluation.frontier or ()
    if any(one.to_teacher is not None for one in shown):
        names += ["over teacher", "95% interval"]
    if any(one.to_many is not None for one in shown):
        names += ["over its many steps", "95% interval"]
    return names


def frontier_rows(evaluation: Evaluation) -> list[list[str]]:
    """Cells under `frontier_columns`, by axis, model and steps; none where no row has a second temperature."""
    if not is_curved(evaluation):
        return []
    shown = evaluation.frontier or ()
    columns = [
        (name, f"{name}_ci") for name in ("to_teacher", "to_many") if any(getattr(o, name) is not None for o in shown)
    ]
    order = sorted(shown, key=lambda one: get_args(Axis).index(one.axis), reverse=True)
    return [_cells(one, columns) for one in order]


def frontier_caption(evaluation: Evaluation) -> str:
    """One line: what was read, and where."""
    where = {one.axis: f"{one.axis} {one.entropy:.3f}" for one in evaluation.frontier or ()}
    return (
        "perplexity between the temperatures, log-linearly, where the entropy is that of real text: "
        f"{', '.join(reversed(where.values()))} nats (bigram: of the model's tokens, all samples together; unigram: of "
        "the judge's tokens within a sample); over teacher: of its perplexity there, in as many steps of the same "
        "sampler; intervals: bootstrap over samples of all this; "
        f"{NOT_REACHED}: no temperature on either side"
    )


def is_curved(evaluation: Evaluation) -> bool:
    """Whether anything was measured at more than one temperature, and there is real text to read it at."""
    measured = {(row.model, row.sampler, row.steps) for row in evaluation.rows}
    return bool(evaluation.frontier) and len(evaluation.rows) > len(measured)


def _cells(one: Frontier, ratios: list[tuple[str, str]]) -> list[str]:
    cells = [one.axis, one.model, f"{one.steps:,}", f"{one.nfe:.1f}"]
    if not one.reached or one.judge_perplexity is None:
        return [*cells, NOT_REACHED, *["–"] * (1 + 2 * len(ratios))]
    cells += [perplexity_text(one.judge_perplexity), _ends(one.judge_perplexity_ci, perplexity_text)]
    for value, interval in ratios:
        ratio = getattr(one, value)
        cells += ["–", "–"] if ratio is None else [f"{ratio:.3f}", _ends(getattr(one, interval), "{:.3f}".format)]
    return cells


def _ends(interval: Interval | None, text: Callable[[float], str]) -> str:
    return "–" if interval is None else "–".join(map(text, interval))
