"""Where students are as varied as real text: the perplexity there of each label, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from distill.comparison.results import Comparison
from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Frontier
from distill.pages.blocks import Table
from distill.runtime.result_files import as_json

SHOWN_STEPS = 8
Group = tuple[str, int, str]
"""A label, or "teacher"; a number of steps; an axis."""


def frontier_tables(comparison: Comparison) -> tuple[Table, ...]:
    """A table, or none where there is no frontier."""
    groups = _groups(comparison)
    if not groups:
        return ()
    rows = [
        [label, f"{steps:,}", axis, f"{ones[0].entropy:.3f}", *_figures(ones)]
        for (label, steps, axis), ones in groups.items()
    ]
    records = [{"label": label} | as_json(one) for (label, *_), ones in groups.items() for one in ones]
    table = Table(
        name="Perplexity at the entropy of real text",
        caption="Interpolated between the temperatures of each curve, means over seeds; lower is better. A curve that "
        "never has that entropy has no figure.",
        columns=["model", "steps", "entropy", "nats", "judge PPL", "lowest–highest seed", "seeds that reach it"],
        rows=rows,
        left=["model", "entropy"],
        tones=["teacher" if row[0] == "teacher" else "" for row in rows],
        records=records,
    )
    return (table,)


def frontier_sentences(comparison: Comparison) -> list[str]:
    """The order of the labels at the unigram entropy of real text; nothing where there is no frontier."""
    groups = _groups(comparison)
    if not groups:
        return []
    steps = min({count for _, count, _ in groups}, key=lambda count: (abs(count - SHOWN_STEPS), count))
    here = {
        label: _reached(ones) for (label, count, axis), ones in groups.items() if (count, axis) == (steps, "unigram")
    }
    means = {label: geometric_mean(values) for label, values in here.items() if values}
    order = "; ".join(f"{label} {perplexity_text(means[label])}" for label in sorted(means, key=means.__getitem__))
    missing = ", ".join(label for label, values in here.items() if not values)
    sentences = [f"In {steps} steps and as varied as real text (unigram entropy), perplexities are: {order}."] * bool(
        order
    )
    return sentences + [f"Never as varied as real text in {steps} steps: {missing}."] * bool(missing)


def _groups(comparison: Comparison) -> dict[Group, list[Frontier]]:
    """The teacher's, and those of each label with all seeds that came through."""
    named = [("teacher", one) for one in comparison.frontier or ()]
    named += [(run.label, one) for run in comparison.runs for one in run.frontier or ()]
    groups: dict[Group, list[Frontier]] = {}
    for name, one in named:
        groups.setdefault((name, one.steps, one.axis), []).append(one)
    return groups


def _reached(ones: Sequence[Frontier]) -> list[float]:
    return [one.judge_perplexity for one in ones if one.judge_perplexity is not None]


def _figures(ones: Sequence[Frontier]) -> list[str]:
    values = _reached(ones)
    if not values:
        return ["not reached", "–", f"0 of {len(ones)}"]
    span = "–" if len(values) == 1 else f"{perplexity_text(min(values))}–{perplexity_text(max(values))}"
    return [perplexity_text(geometric_mean(values)), span, f"{len(values)} of {len(ones)}"]
