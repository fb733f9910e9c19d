"""Whether an evaluation says what comes out when it is made again: each figure within an interval, or equal.

Both evaluations are of samples, so both are off by chance. A figure of a second one lies within
stated ± q · √(s² + m²), where s and m are the standard errors of the two. With R figures in a table, one of them would
be outside by chance far more often than in one table of twenty, so q is Student's quantile of 1 − 0.05 / (2R), which is
Bonferroni's: a table that tells the truth passes at least 95 times in 100. An interval that is stated far too wide
excuses nothing: s counts for 2m at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

from distill.evaluation.results import Evaluation, Figures, Interval, Row
from distill.evaluation.tasks.results import TaskEvaluation

LEVEL = 0.95
"""How often a table that tells the truth passes, at least."""
EQUAL = 1e-6
"""Relative difference of what is computed twice from the same draws, in another order of sums."""
POSITIVE = ("judge_perplexity", "to_teacher", "to_many")
"""Figures that are exponentials of means, whose logarithms are normal."""
REPEATED = (
    "self_bleu", "mauve", "gradient_moment", "energy_distance", "energy_null", "overlap_max", "length_ended",
    "length_distance",
)  # fmt: skip
"""Figures that nobody knows an interval of. They are verified where they are of the same texts, and must be equal."""


@dataclass(frozen=True)
class Check:
    """One figure of a table.

    Attributes:
        row: whose it is. figure: its name.
        stated, measured: by the table, and now; None where one has no such row or figure.
        interval: where it must be measured; both ends are ``stated`` where it must be equal.
    """

    row: str
    figure: str
    stated: float | None
    measured: float | None
    interval: Interval | None

    @property
    def within(self) -> bool:
        """Whether it was measured where it must be; no if it was not at all, or is not a number."""
        if self.stated is None or self.measured is None or self.interval is None:
            return False
        low, high = self.interval
        slack = EQUAL * abs(self.stated)
        return low - slack <= self.measured <= high + slack


@dataclass(frozen=True)
class Verification:
    """A table measured again, figure by figure.

    >>> print(fewstep.verify("runs/student").table())  # doctest: +SKIP

    Attributes:
        folder: of the model.
        command: by which its table was measured.
        checks: all figures that were compared.
        left_out: rows that were not measured again, and why.
        unverified: figures that were measured, but of other texts, and have no interval: see `REPEATED`.
        seed: of the new samples.
        measured: the new evaluation; None where the folder has tasks alone. tasks: those that were asked again.
    """

    folder: str
    command: str
    checks: tuple[Check, ...]
    left_out: tuple[str, ...]
    unverified: tuple[str, ...]
    seed: int
    measured: Evaluation | None
    tasks: tuple[TaskEvaluation, ...] = ()

    @property
    def failures(self) -> tuple[Check, ...]:
        """The figures that were measured elsewhere."""
        return tuple(check for check in self.checks if not check.within)

    @property
    def passed(self) -> bool:
        """Whether every figure was measured where it must be."""
        return not self.failures

    def table(self) -> str:
        """The figures as text, a line each, with a caption."""
        from distill.evaluation.reports.verification import verification_table
        from distill.runtime.tables import text

        return text(verification_table(self))


def checks_of(stated: Evaluation, measured: Evaluation, same_draws: bool = False) -> tuple[Check, ...]:
    """Compare the rows of two evaluations that both have, those of the second one alone being asked for.

    Args:
        stated: whose rows that ``measured`` has none of are left out.
        same_draws: both are of the same samples, so that all figures must be equal.
    """
    pairs = list(_pairs(stated, measured))
    drawn = [] if same_draws else [now for _, _, now in pairs if now is not measured.reference]
    quantile = _quantile(drawn, min([row.samples for _, row, _ in pairs if isinstance(row, Figures)] or [2]))
    checks = [_equal("judge", "parameters", stated.judge.parameters, measured.judge.parameters)]
    for name, model in (measured.models or {}).items():
        if stated.models is not None and name in stated.models:
            checks.append(_equal(name, "parameters", stated.models[name].parameters, model.parameters))
    for label, then, now in pairs:
        if isinstance(now, Figures):
            checks.append(_equal(label, "samples", then.samples, now.samples))
        loose = 0.0 if same_draws or now is measured.reference else quantile  # real text is the same
        checks += [_check(label, name, then, now, loose) for name in _estimated(now)]
        if same_draws or now is measured.reference:
            checks += [_check(label, name, then, now, 0.0) for name in _repeated(then, now)]
    known = _rows(stated)
    new = {key: row for key, row in _rows(measured).items() if key not in known}
    return (*checks, *(Check(key[0], "steps", None, row.steps, None) for key, row in new.items()))


def task_checks(stated: TaskEvaluation, measured: TaskEvaluation, same_draws: bool = False) -> tuple[Check, ...]:
    """The same for a task that was asked again. Arguments as of `checks_of`."""
    known = {(row.model, row.sampler, row.steps): row for row in stated.rows}
    task, checks = measured.task, []
    checks.append(_equal(f"task {task.name}", "questions", stated.task.questions, task.questions))
    quantile = 0.0 if same_draws else _quantile(measured.rows, task.questions)
    for row in measured.rows:
        label = f"task {task.name}, {row.model}, {row.sampler}, {row.steps} steps"
        then = known.get((row.model, row.sampler, row.steps))
        if then is None:
            checks.append(Check(label, "steps", None, row.steps, None))
            continue
        checks += [_check(label, name, then, row, quantile) for name in _estimated(row)]
    return tuple(checks)


def _quantile(drawn: Sequence[Any], samples: int) -> float:
    """q of a table with all figures that the results ``drawn`` estimate from so many samples."""
    several = sum(_error(now, name) > 0 for now in drawn for name in _estimated(now))
    return student_quantile(1 - (1 - LEVEL) / (2 * max(1, several)), samples - 1)


def unverified(stated: Evaluation, measured: Evaluation) -> tuple[str, ...]:
    """Which figures of the rows that both have no comparison holds for, since they are of other texts."""
    pairs = [(then, now) for _, then, now in _pairs(stated, measured) if now is not measured.reference]
    return tuple(dict.fromkeys(name for then, now in pairs for name in _repeated(then, now)))


def row_label(row: Row) -> str:
    """A row's name, for people."""
    warm = "" if row.temperature is None else f", temperature {row.temperature:g}"
    return f"{row.model}, {row.steps} steps{warm}"


def student_quantile(probability: float, degrees: int) -> float:
    """Student's t: the Cornish–Fisher expansion, to 1% from 10 degrees of freedom on at the levels of tables."""
    z = NormalDist().inv_cdf(probability)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / max(1, degrees) ** (i + 1) for i, term in enumerate(terms))


def _equal(row: str, figure: str, stated: int, measured: int) -> Check:
    return Check(row, figure, stated, measured, (stated, stated))


def _pairs(stated: Evaluation, measured: Evaluation) -> Iterator[tuple[str, Any, Any]]:
    """What both measured: a name, and the results that hold its figures."""
    if stated.reference is not None and measured.reference is not None:
        yield "real text", stated.reference, measured.reference
    known = _rows(stated)
    for key, row in _rows(measured).items():
        if key in known:
            yield key[0], known[key], row
    points = {(p.model, p.sampler, p.steps, p.axis): p for p in stated.frontier or () if p.reached}
    for point in measured.frontier or ():
        then = points.get((point.model, point.sampler, point.steps, point.axis))
        if then is not None and point.reached:
            yield f"{point.model}, {point.steps} steps, at real text's {point.axis} entropy", then, point


def _rows(evaluation: Evaluation) -> dict[tuple[str, str], Row]:
    """Every row, by its label and its sampler."""
    rows = {(row_label(row), row.sampler): row for row in (*evaluation.rows, *(evaluation.served or ()))}
    published = {(f"{row_label(row)}, as published", row.sampler): row for row in evaluation.published or ()}
    return rows | published


def _estimated(result: Any) -> Iterable[str]:
    """The figures of a result that come with an interval."""
    names = [f.name for f in fields(result)]
    return [name for name in names if f"{name}_ci" in names and getattr(result, f"{name}_ci") is not None]


def _repeated(stated: Any, measured: Any) -> Iterable[str]:
    """The figures without an interval that both results have."""
    return [name for name in REPEATED if None not in (getattr(stated, name, None), getattr(measured, name, None))]


def _check(label: str, name: str, stated: Any, measured: Any, quantile: float) -> Check:
    then, now = getattr(stated, name), getattr(measured, name)
    if then is None or not _holds(getattr(stated, f"{name}_ci", None), then):
        return Check(label, name, then, now, None)
    error = _error(measured, name)
    before = _error(stated, name) or error  # earlier files have no interval of some figures
    half = quantile * math.hypot(min(before, 2 * error) if error else before, error)
    if name in POSITIVE and then > 0:
        return Check(label, name, then, now, (then * math.exp(-half), then * math.exp(half)))
    return Check(label, name, then, now, (then - half, then + half))


def _holds(ends: Interval | None, value: float) -> bool:
    """Whether a figure is within what is stated as its own interval; earlier files state none for some."""
    return ends is None or ends[0] - EQUAL <= value <= ends[1] + EQUAL


def _error(result: Any, name: str) -> float:
    """The standard error of a figure, of its logarithm if `POSITIVE`; 0 where its interval says none."""
    ends = getattr(result, f"{name}_ci", None)
    if ends is None or not all(map(math.isfinite, ends)) or (name in POSITIVE and min(ends) <= 0):
        return 0.0
    low, high = (math.log(end) if name in POSITIVE else end for end in ends)
    return (high - low) / (2 * NormalDist().inv_cdf((1 + 0.95) / 2))
