"""A comparison where text is as varied as real text: who is better is told there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import geometric_mean

from distill.comparison.results import Comparison
from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Axis, Frontier

COLUMNS = ["entropy", "steps", "model", "seeds", "judge PPL", "range"]
TITLE = "At the entropy of real text"
CAPTION = (
    "perplexity between the temperatures, log-linearly, where the entropy is that of real text, the best first; of "
    "students the mean over seeds, in nats, with the least and the greatest seed, of the teacher a 95% bootstrap "
    "interval over samples"
)

Cell = tuple[float, list[str]]
Group = tuple[Axis, int, str]
"""An axis, a number of steps, and a label or "teacher"."""


def frontier_groups(comparison: Comparison) -> dict[Group, list[Frontier]]:
    """The teacher's, and those of each label with all seeds that came through."""
    named = [("teacher", one) for one in comparison.frontier or ()]
    named += [(run.label, one) for run in comparison.runs for one in run.frontier or ()]
    groups: dict[Group, list[Frontier]] = {}
    for name, one in named:
        groups.setdefault((one.axis, one.steps, name), []).append(one)
    return groups


def perplexities(seeds: Sequence[Frontier]) -> list[float]:
    """Of those that reach the entropy of real text."""
    return [one.judge_perplexity for one in seeds if one.judge_perplexity is not None]


def mean_perplexity(seeds: Sequence[Frontier]) -> float | None:
    """The mean in nats; None unless every seed reaches it, since those that do may be the better ones."""
    values = perplexities(seeds)
    return geometric_mean(values) if values and len(values) == len(seeds) else None


def range_text(values: Sequence[float]) -> str:
    """The least and the greatest."""
    return f"{perplexity_text(min(values))}–{perplexity_text(max(values))}"


def frontier_rows(comparison: Comparison) -> list[list[str]]:
    """Cells under `COLUMNS`, by entropy and steps, the best first; none where nobody reaches real text."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for (axis, steps, name), ones in frontier_groups(comparison).items():
        groups.setdefault((axis, steps), []).append(_teacher(ones[0]) if name == "teacher" else _student(name, ones))
    if not any(math.isfinite(value) for cells in groups.values() for value, _ in cells):
        return []
    return [
        [axis, f"{steps:,}", *cells]
        for axis, steps in sorted(groups)
        for _, cells in sorted(groups[axis, steps], key=lambda cell: cell[0])
    ]


def _student(label: str, seeds: list[Frontier]) -> Cell:
    values, mean = perplexities(seeds), mean_perplexity(seeds)
    if mean is None:
        return math.inf, [label, str(len(seeds)), f"{len(values)} of {len(seeds)} reach it", "–"]
    return mean, [label, str(len(seeds)), perplexity_text(mean), range_text(values)]


def _teacher(one: Frontier) -> Cell:
    if one.judge_perplexity is None or one.judge_perplexity_ci is None:
        return math.inf, ["teacher", "–", "not reached", "–"]
    interval = "–".join(map(perplexity_text, one.judge_perplexity_ci))
    return one.judge_perplexity, ["teacher", "–", perplexity_text(one.judge_perplexity), interval]
