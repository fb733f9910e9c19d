"""Means and ranges over seeds, and who is dominated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.comparison.results import RunResult
from distill.evaluation.results import Interval, Row, at_own_temperature


@dataclass(frozen=True)
class Summary:
    """One label at one number of steps.

    Attributes:
        quality: what `measure` says, the mean over seeds. values: each seed's. spread: see `spread`.
        bigram_entropy: the mean; ``entropies`` each seed's, with their ``entropy_spread``.
        excess_nats: as the other figures a mean over seeds; None where the judge knows no source.
        samples: of one seed.
        dominated_by: labels whose quality is lower, that is better, at equal or higher bigram entropy, best first.
    """

    label: str
    steps: int
    seeds: int
    updates: int
    quality: float
    values: tuple[float, ...]
    spread: Interval | None
    entropies: tuple[float, ...]
    entropy_spread: Interval | None
    samples: int
    excess_nats: float | None
    unigram_entropy: float
    bigram_entropy: float
    distinct_2: float
    nfe: float
    critic_nfe: float
    seconds: float
    train_seconds: float
    rows_seconds: float
    dominated_by: tuple[str, ...] = ()

    def dominates(self, other: Summary) -> bool:
        """Whether it is better at the same number of steps without being less diverse."""
        return (
            self.steps == other.steps
            and self.quality < other.quality
            and self.bigram_entropy >= other.bigram_entropy
        )  # fmt: skip


def summarise(runs: Sequence[RunResult], key: str, temperature: float = 1.0) -> list[Summary]:
    """Means over seeds of each label at each number of steps, in the order of steps, then labels.

    Args:
        runs: those that failed do not count.
        key: what quality is, see `measure`.
        temperature: the sampler's own, whose rows are meant.
    """
    groups: dict[tuple[int, str], list[tuple[RunResult, Row]]] = {}
    for run in runs:
        for row in at_own_temperature(run.rows, temperature):
            groups.setdefault((row.steps, run.label), []).append((run, row))
    labels = list(dict.fromkeys(run.label for run in runs))
    order = sorted(groups, key=lambda group: (group[0], labels.index(group[1])))
    summaries = [_summary(groups[group], key) for group in order]
    best_first = sorted(summaries, key=lambda one: one.quality)
    return [
        replace(one, dominated_by=tuple(other.label for other in best_first if other.dominates(one)))
        for one in summaries
    ]


def _summary(group: list[tuple[RunResult, Row]], key: str) -> Summary:
    run, first = group[0]
    values, entropies = (tuple(getattr(row, name) for _, row in group) for name in (key, "bigram_entropy"))

    def mean_of(name: str) -> float:
        return _mean([getattr(row, name) for _, row in group])

    return Summary(
        label=run.label,
        steps=first.steps,
        seeds=len(group),
        updates=run.updates,
        quality=_pooled(values, key),
        values=values,
        spread=spread(values),
        entropies=entropies,
        entropy_spread=spread(entropies),
        samples=first.samples,
        excess_nats=None if first.excess_nats is None else mean_of("excess_nats"),
        unigram_entropy=mean_of("unigram_entropy"),
        bigram_entropy=mean_of("bigram_entropy"),
        distinct_2=mean_of("distinct_2"),
        nfe=mean_of("nfe"),
        critic_nfe=mean_of("critic_nfe"),
        seconds=mean_of("seconds"),
        train_seconds=_mean([run.train_seconds for run, _ in group]),
        rows_seconds=_mean([run.rows_seconds or 0.0 for run, _ in group]),
    )


def _pooled(values: Sequence[float], key: str) -> float:
    """The mean. Perplexities are averaged as nats a token: that is all seeds' samples together."""
    if key != "judge_perplexity" or not all(math.isfinite(value) for value in values):
        return _mean(values)
    return math.exp(_mean([math.log(value) for value in values]))


def spread(values: Sequence[float]) -> Interval | None:
    """The least and the greatest over seeds; None for a single one.

    Three seeds are too few for an interval of their mean: Student's has 4.3 standard errors then, and stands on a
    deviation that three values hardly tell.
    """
    return (min(values), max(values)) if len(values) > 1 else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
