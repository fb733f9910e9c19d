"""Students and teacher are ranked where text is as varied as real text."""

import dataclasses
from pathlib import Path

from distill.comparison.reports.frontier import frontier_rows
from distill.comparison.reports.markdown import comparison_markdown
from distill.comparison.results import Comparison
from distill.evaluation.results import Frontier

NOVELS = Path(__file__).parents[3] / "docs" / "novels.json"


def reading(value, model="student"):
    return Frontier(
        model=model, sampler="dilated", steps=8, nfe=8.0, axis="bigram", entropy=5.471, reached=value is not None,
        judge_perplexity=value, judge_perplexity_ci=None if value is None else (value - 1, value + 1),
    )  # fmt: skip


def test_students_are_ranked_at_the_entropy_of_real_text_with_their_range_over_seeds():
    comparison = Comparison.load(NOVELS)
    assert frontier_rows(comparison) == []
    run = comparison.runs[0]
    values = {"best": (8.0, 12.5), "short": (9.0, None), "worst": (20.0, 20.0)}
    runs = tuple(
        dataclasses.replace(run, label=label, seed=seed, frontier=(reading(value),))
        for label, seeds in values.items()
        for seed, value in enumerate(seeds)
    )
    told = dataclasses.replace(comparison, runs=runs, frontier=(reading(15.0, "teacher"),))
    assert frontier_rows(told) == [
        ["bigram", "8", "best", "2", "10.00", "8.00–12.50"],
        ["bigram", "8", "teacher", "–", "15.00", "14.00–16.00"],
        ["bigram", "8", "worst", "2", "20.00", "20.00–20.00"],
        ["bigram", "8", "short", "2", "1 of 2 reach it", "–"],
    ]
    assert "| bigram | 8 | best | 2 | 10.00 | 8.00–12.50 |" in comparison_markdown(told)
    assert Comparison.from_json(told.as_json()) == told
