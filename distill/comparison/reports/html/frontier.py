"""Where students are as varied as real text: the perplexity there of each label, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence

from distill.comparison.reports.frontier import frontier_groups, mean_perplexity, perplexities, range_text
from distill.comparison.results import Comparison
from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Axis, Frontier
from distill.pages.blocks import Table
from distill.runtime.result_files import as_json

SHOWN_STEPS = 8


def frontier_tables(comparison: Comparison) -> tuple[Table, ...]:
    """A table, or none where there is no frontier."""
    groups = frontier_groups(comparison)
    if not groups:
        return ()
    rows = [
        [label, f"{steps:,}", axis, f"{ones[0].entropy:.3f}", *_figures(ones)]
        for (axis, steps, label), ones in groups.items()
    ]
    records = [{"label": label} | as_json(one) for (*_, label), ones in groups.items() for one in ones]
    table = Table(
        name="Perplexity at the entropy of real text",
        caption="Interpolated between the temperatures of each curve, means over seeds; lower is better. There is "
        "no figure where a seed's curve never has that entropy.",
        columns=["model", "steps", "entropy", "nats", "judge PPL", "lowest–highest seed", "seeds that reach it"],
        rows=rows,
        left=["model", "entropy"],
        tones=["teacher" if row[0] == "teacher" else "" for row in rows],
        records=records,
    )
    return (table,)


def frontier_sentences(comparison: Comparison) -> list[str]:
    """The order of the labels at an entropy of real text, see `_modest`; nothing where there is no frontier."""
    groups = frontier_groups(comparison)
    if not groups:
        return []
    steps = min({count for _, count, _ in groups}, key=lambda count: (abs(count - SHOWN_STEPS), count))
    by_axis: dict[Axis, dict[str, list[Frontier]]] = {}
    for (axis, count, name), ones in groups.items():
        if count == steps:
            by_axis.setdefault(axis, {})[name] = ones
    axis = _modest(by_axis)
    here, means = by_axis[axis], _means(by_axis[axis])
    order = "; ".join(f"{label} {perplexity_text(means[label])}" for label in sorted(means, key=means.__getitem__))
    reached = {name: len(perplexities(ones)) for name, ones in here.items() if name not in means}
    some = ", ".join(f"{name} with {count} of {len(here[name])} seeds" for name, count in reached.items() if count)
    missing = ", ".join(name for name, count in reached.items() if not count)
    sentences = [f"In {steps} steps and as varied as real text ({axis} entropy), perplexities are: {order}."] * bool(
        order
    )
    sentences += [f"As varied as real text in {steps} steps only with some seeds: {some}."] * bool(some)
    return sentences + [f"Never as varied as real text in {steps} steps: {missing}."] * bool(missing)


def _modest(by_axis: dict[Axis, dict[str, list[Frontier]]]) -> Axis:
    """Of the entropies the one that claims least: where the best label gains least on the teacher in as many steps."""

    def modesty(axis: Axis) -> tuple[bool, float]:
        means = _means(by_axis[axis])
        teacher = means.pop("teacher", None)
        if teacher is None or not means:
            return False, len(means)
        return True, min(means.values()) / teacher

    return max(by_axis, key=modesty)


def _means(here: dict[str, list[Frontier]]) -> dict[str, float]:
    """Of those that reach real text with every seed."""
    return {name: mean for name, ones in here.items() if (mean := mean_perplexity(ones)) is not None}


def _figures(ones: Sequence[Frontier]) -> list[str]:
    values, mean = perplexities(ones), mean_perplexity(ones)
    seeds = f"{len(values)} of {len(ones)}"
    if mean is None:
        return ["not reached", "–", seeds]
    return [perplexity_text(mean), "–" if len(values) == 1 else range_text(values), seeds]
