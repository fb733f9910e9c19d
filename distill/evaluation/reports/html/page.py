"""The page of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from distill.config import EvaluateConfig
from distill.evaluation.answers import Answers
from distill.evaluation.reports.html.claim import cards, claim
from distill.evaluation.reports.html.frontier import frontier_charts, frontier_table
from distill.evaluation.reports.html.quality import (
    evaluation_tables,
    other_charts,
    quality_charts,
    telling_charts,
)
from distill.evaluation.reports.html.settings import cost_facts, setting_facts, task_facts
from distill.evaluation.reports.html.tasks import task_block, task_charts
from distill.evaluation.reports.html.training import Lines, other_training_charts, training_charts
from distill.evaluation.reports.html.writing import answer_blocks, strip_blocks
from distill.evaluation.results import Evaluation
from distill.evaluation.tasks.results import TaskEvaluation
from distill.pages.blocks import Block, Charts, Folded, Heading, Listing, Section
from distill.pages.chart import Chart, alike
from distill.pages.page import Page
from distill.runtime.cost import Cost

Part = TypeVar("Part")
LEAD = (
    "A diffusion language model writes a text by filling a blank canvas in many passes of its network; a student has "
    "been trained to fill it in a few. This page shows how good and how varied the student's text is beside its "
    "teacher's, what that cost, and what both of them write."
)


@dataclass(frozen=True)
class Report:
    """What is known of one run.

    Attributes:
        name: for people.
        config: as it was run, in YAML; None where nobody knows.
        watch: the settings that the training was watched with.
        lines: of metrics.jsonl. best: the update marked best.
        answers: what both models wrote after the same prompts.
        cost: of the training, where the evaluation does not say it.
    """

    name: str
    evaluation: Evaluation | None = None
    tasks: tuple[TaskEvaluation, ...] = ()
    config: str | None = None
    watch: EvaluateConfig = field(default_factory=EvaluateConfig)
    lines: Lines = ()
    best: int | None = None
    answers: Answers | None = None
    cost: Cost | None = None


def report_page(reports: Sequence[Report]) -> Page:
    """One page; runs stand side by side, in plots with the same limits."""
    title = " and ".join(report.name for report in reports)
    return Page(title, LEAD, [*_measured(reports), *_read(reports), *_looked_up(reports)])


def _measured(reports: Sequence[Report]) -> list[Section]:
    """What was measured of the texts."""
    curves, costs, telling, others = (
        _of_evaluation(charts) for charts in (frontier_charts, quality_charts, telling_charts, other_charts)
    )
    return [
        Section("claim", "In short", "", _each(reports, _claim)),
        Section(
            "frontier", "Quality against diversity",
            "A text that repeats itself is easy to predict, so a low perplexity alone proves nothing. Here it is "
            "plotted over how varied the text is: models are compared where they are as varied as real text.",
            (*_side_by_side(reports, curves), *_each(reports, _of_evaluation(frontier_table))),
        ),
        Section(
            "cost", "What a pass buys",
            "A pass is one run of the network over the whole text. Fewer passes are what a student is for.",
            _side_by_side(reports, costs),
        ),
        Section(
            "figures", "More than perplexity",
            "Repetition, templates and low temperatures lower a perplexity without improving a text. Each of them "
            "shows in at least one of these figures.",
            (*_side_by_side(reports, telling), *_folded("Other figures of the texts", reports, others)),
        ),
        Section(
            "tasks", "Right answers",
            "The same questions, answered by teacher and student in various numbers of passes.",
            (*_side_by_side(reports, _tasks), *_each(reports, _task_tables)),
        ),
    ]  # fmt: skip


def _read(reports: Sequence[Report]) -> list[Section]:
    """What people read and look at."""
    return [
        Section(
            "texts", "What they write",
            "The same prompts from held-out text, continued by the teacher in many and few passes and by the student "
            "in few; equal numbers of steps face each other. Nothing was picked.",
            _each(reports, _answers),
        ),
        Section(
            "canvas", "How a canvas fills",
            "The first of these texts, pass by pass. Play it, or move the slider with the arrow keys.",
            _each(reports, _strips),
        ),
        Section(
            "training", "How the student was trained",
            "The loss does not show whether a student collapses onto a few texts; the watch does, which samples it now "
            "and then.",
            (*_side_by_side(reports, _training), *_folded("All that was logged", reports, _logged)),
        ),
    ]  # fmt: skip


def _looked_up(reports: Sequence[Report]) -> list[Section]:
    """Tables and settings."""
    tables = _each(reports, _of_evaluation(evaluation_tables))
    return [
        Section("tables", "All figures", "Choose a heading to sort by it. The files hold all digits.", tables),
        Section("settings", "Settings, versions and cost", "", _each(reports, _settings)),
    ]


def _owned(reports: Sequence[Report]) -> list[tuple[Report, str]]:
    """Every run with its name, or "" where it is the only one."""
    return [(report, report.name if len(reports) > 1 else "") for report in reports]


def _each(reports: Sequence[Report], blocks: Callable[[Report, str], Iterable[Block]]) -> tuple[Block, ...]:
    """The blocks of one run after another."""
    return tuple(block for report, owner in _owned(reports) for block in blocks(report, owner))


def _side_by_side(reports: Sequence[Report], charts: Callable[[Report, str], list[Chart]]) -> tuple[Block, ...]:
    """The plots of all runs: those of the same name beside each other, with the same limits."""
    groups: dict[str, list[Chart]] = {}
    for report, owner in _owned(reports):
        for chart in charts(report, owner):
            groups.setdefault(chart.name, []).append(chart)
    ordered = tuple(chart for group in groups.values() for chart in alike(group))
    return (Charts(ordered, across=min(len(reports), 3) if len(reports) > 1 else 2),) if ordered else ()


def _of_evaluation(parts: Callable[[Evaluation, str], list[Part]]) -> Callable[[Report, str], list[Part]]:
    """What is made of a run's evaluation; nothing where it has none."""
    return lambda report, owner: [] if report.evaluation is None else parts(report.evaluation, owner)


def _folded(name: str, reports: Sequence[Report], charts: Callable[[Report, str], list[Chart]]) -> tuple[Block, ...]:
    blocks = _side_by_side(reports, charts)
    return (Folded(name, blocks),) if blocks else ()


def _claim(report: Report, owner: str) -> list[Block]:
    if report.evaluation is None:
        return []
    return [*_named(owner), claim(report.evaluation), cards(report.evaluation)]


def _named(owner: str) -> list[Block]:
    return [Heading(owner)] if owner else []


def _tasks(report: Report, owner: str) -> list[Chart]:
    return [chart for task in report.tasks for chart in task_charts(task, owner)]


def _task_tables(report: Report, owner: str) -> list[Block]:
    return [task_block(task, owner) for task in report.tasks]


def _answers(report: Report, owner: str) -> list[Block]:
    return [] if report.answers is None else [*answer_blocks(report.answers, owner)]


def _strips(report: Report, owner: str) -> list[Block]:
    return [] if report.answers is None else [*strip_blocks(report.answers, owner)]


def _training(report: Report, owner: str) -> list[Chart]:
    return training_charts(report.lines, report.watch, report.best, owner)


def _logged(report: Report, owner: str) -> list[Chart]:
    return other_training_charts(report.lines, owner)


def _settings(report: Report, owner: str) -> list[Block]:
    evaluation = report.evaluation
    blocks = [] if evaluation is None else [setting_facts(evaluation)]
    blocks += [task_facts(task) for task in report.tasks]
    training = report.cost if evaluation is None or evaluation.training is None else evaluation.training
    costs = {"training": training, "measuring": None if evaluation is None else evaluation.cost}
    blocks += [cost_facts(name, cost) for name, cost in costs.items() if cost is not None]
    config = () if report.config is None else (Folded("The whole config", (Listing(report.config),)),)
    return [*_named(owner), *blocks, *config]
