"""A comparison where text is as varied as real text: who is better is told there."""

from __future__ import annotations

import math

from distill.comparison.results import Comparison
from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Frontier

COLUMNS = ["entropy", "steps", "model", "seeds", "judge PPL", "range"]
TITLE = "At the entropy of real text"
CAPTION = (
    "perplexity between the temperatures, log-linearly, where the entropy is that of real text, the best first; of "
    "students the mean over seeds, in nats, with the least and the greatest seed, of the teacher a 95% bootstrap "
    "interval over samples"
)

Cell = tuple[float, list[str]]


def frontier_rows(comparison: Comparison) -> list[list[str]]:
    """Cells under `COLUMNS`, by entropy and steps, the best first; none where nobody reaches real text."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    students: dict[tuple[str, int, str], list[Frontier]] = {}
    for run in comparison.runs:
        for one in run.frontier or ():
            students.setdefault((one.axis, one.steps, run.label), []).append(one)
    for (axis, steps, label), seeds in students.items():
        groups.setdefault((axis, steps), []).append(_student(label, seeds))
    for one in comparison.frontier or ():
        groups.setdefault((one.axis, one.steps), []).append(_teacher(one))
    if not any(math.isfinite(value) for cells in groups.values() for value, _ in cells):
        return []
    return [
        [axis, f"{steps:,}", *cells]
        for axis, steps in sorted(groups)
        for _, cells in sorted(groups[axis, steps], key=lambda cell: cell[0])
    ]


def _student(label: str, seeds: list[Frontier]) -> Cell:
    values = [one.judge_perplexity for one in seeds if one.judge_perplexity is not None]
    if len(values) < len(seeds):
        return math.inf, [label, str(len(seeds)), f"{len(values)} of {len(seeds)} reach it", "–"]
    mean = math.exp(sum(map(math.log, values)) / len(values))
    spread = f"{perplexity_text(min(values))}–{perplexity_text(max(values))}"
    return mean, [label, str(len(seeds)), perplexity_text(mean), spread]


def _teacher(one: Frontier) -> Cell:
    if one.judge_perplexity is None or one.judge_perplexity_ci is None:
        return math.inf, ["teacher", "–", "not reached", "–"]
    interval = "–".join(map(perplexity_text, one.judge_perplexity_ci))
    return one.judge_perplexity, ["teacher", "–", perplexity_text(one.judge_perplexity), interval]
