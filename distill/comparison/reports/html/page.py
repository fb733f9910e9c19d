"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from types import MappingProxyType

from distill.comparison.kept import Kept
from distill.comparison.reports.cells import caption, columns, quality_text, table_sections
from distill.comparison.reports.html.charts import ComparisonCharts
from distill.comparison.reports.html.frontier import frontier_sentences, frontier_tables
from distill.comparison.reports.markdown import RUN_COLUMNS, run_cells
from distill.comparison.results import Comparison
from distill.config import EvaluateConfig
from distill.evaluation.reports.cells import AXES
from distill.evaluation.reports.html.training import other_training_charts, training_charts
from distill.evaluation.reports.html.writing import answer_blocks, strip_blocks
from distill.pages.blocks import Block, Charts, Facts, Folded, Prose, Section, Table
from distill.pages.page import Page
from distill.runtime.result_files import as_json
from distill.runtime.run_folder import flatten

LEAD = (
    "A diffusion language model writes a text by filling a blank canvas in many passes of its network; a student has "
    "been trained to fill it in a few. This page compares several ways to train one: with the same teacher and the "
    "same budget, measured in the same way."
)


def comparison_page(comparison: Comparison, name: str, runs: Mapping[str, Kept] = MappingProxyType({})) -> Page:
    """The page.

    Args:
        runs: what is kept of a run of each label, by the run's name; see `kept_runs`.
    """
    charts = ComparisonCharts(comparison)
    written = {name: kept.answers for name, kept in runs.items() if kept.answers is not None}
    return Page(
        title=name,
        lead=LEAD,
        sections=[
            Section("claim", "In short", _seeds(comparison), (_claim(comparison, charts),)),
            Section(
                "frontier", "Quality against diversity",
                "A text that repeats itself is easy to predict, so a low perplexity alone proves nothing: further down "
                "and not further to the left is better.",
                ((Charts(tuple(charts.frontiers()), together=True),) if charts.summaries else ())
                + frontier_tables(comparison),
            ),
            Section(
                "cost", "What a pass buys",
                "A pass is one run of the network over the whole text. Fewer passes are what a student is for.",
                (Charts(tuple(charts.costs()), together=True),),
            ),
            Section(
                "texts", "What they write",
                "The same prompts from held-out text. Nothing was picked.",
                tuple(block for name, texts in written.items() for block in answer_blocks(texts, name)),
            ),
            Section(
                "canvas", "How a canvas fills",
                "The first of these texts, pass by pass. Play it, or move the slider with the arrow keys.",
                tuple(block for name, texts in written.items() for block in strip_blocks(texts, name)),
            ),
            Section(
                "training", "How they were trained",
                "Of each config the first seed that came through. No two objectives minimise the same, so that only "
                "the shape of a loss can be compared.",
                _training(runs),
            ),
            Section(
                "tables", "All figures", "Choose a heading to sort by it. The files hold all digits.",
                (_figures(comparison, charts), _runs(comparison)),
            ),
            Section("settings", "Settings and versions", "", _settings(comparison)),
        ],
    )  # fmt: skip


def _seeds(comparison: Comparison) -> str:
    seeds = comparison.command.seeds
    if seeds == 1:
        return "Every config was run with one seed, so nothing here says how much of a difference is chance."
    return (
        f"Every config was run with {seeds} seeds: a mark is the mean, a bar or a band reaches from the lowest to the "
        "highest of them."
    )


def _claim(comparison: Comparison, charts: ComparisonCharts) -> Prose:
    """For each number of steps, who is not dominated; and what failed."""
    sentences = [
        f"These figures are {AXES[comparison.quality]} at bigram entropy; the budget of each run was "
        f"{comparison.command.budget}."
    ]
    for steps, group in groupby(charts.summaries, key=lambda one: one.steps):
        best = sorted((one for one in group if not one.dominated_by), key=lambda one: one.quality)
        names = [
            f"{one.label} ({quality_text(one.quality, comparison.quality)} at {one.bigram_entropy:.3f} nats)"
            for one in best
        ]
        count = f"{steps} step{'s' if steps > 1 else ''}"
        sentences.append(f"In {count} no other is better and at least as varied: {'; '.join(names)}.")
    sentences += frontier_sentences(comparison)
    return Prose((*sentences, *(f"{run.name} failed: {run.failed}" for run in comparison.failures)))


def _training(runs: Mapping[str, Kept]) -> tuple[Block, ...]:
    """Losses and norms of gradients side by side, and all else that was logged."""
    shown = [
        chart for name, kept in runs.items() for chart in training_charts(kept.lines, EvaluateConfig(), None, name)
    ]
    shown.sort(key=lambda chart: chart.name)
    others = tuple(chart for name, kept in runs.items() for chart in other_training_charts(kept.lines, name))
    across = min(len(runs), 3)
    folded = (Folded("All that was logged", (Charts(others, across=across),)),) if others else ()
    return (*((Charts(tuple(shown), across=across),) if shown else ()), *folded)


def _figures(comparison: Comparison, charts: ComparisonCharts) -> Table:
    rows = [cells for section in table_sections(comparison) for cells in section]
    names = columns(comparison)
    models = [row[names.index("model")] for row in rows]
    fixed = {"teacher": "teacher", "real text": "real"}
    reference = [] if comparison.reference is None else [{"model": "real text"} | as_json(comparison.reference)]
    return Table(
        name="Students by steps",
        caption=caption(comparison),
        columns=names,
        rows=rows,
        left=["model", "dominated by"],
        tones=[charts.looks[model][0] if model in charts.looks else fixed[model] for model in models],
        records=[*reference, *map(as_json, comparison.teacher), *comparison.as_json()["rows"]],
    )


def _runs(comparison: Comparison) -> Table:
    return Table(
        name="Runs",
        caption="What each of them was, and how long it took.",
        columns=RUN_COLUMNS,
        rows=[run_cells(run) for run in comparison.runs],
        left=["run", "objective"],
        tones=["" for _ in comparison.runs],
        records=[{key: value for key, value in as_json(run).items() if key != "rows"} for run in comparison.runs],
    )


def _settings(comparison: Comparison) -> tuple[Block, ...]:
    command, machine, sampling, judge = comparison.command, comparison.machine, comparison.sampling, comparison.judge
    facts = [
        ("command", " ".join(command.words)),
        ("budget of a run", command.budget),
        ("seeds", f"{command.seeds}"),
        ("machine", f"{machine.processor}, {machine.cores} cores, {machine.threads} threads a run"),
        ("judge", f"{judge.name}, {judge.parameters / 1e6:,.1f} M parameters"),
        ("samples of a run", sampling.size),
        ("sampler", f"{sampling.sampler}, {sampling.draw} draws, {sampling.precision}"),
        ("torch", sampling.torch),
    ]
    return (Facts(tuple(facts)), *_differences(comparison))


def _differences(comparison: Comparison) -> tuple[Block, ...]:
    """Settings that are not the same in all configs, a row each."""
    settings = {label: flatten(values) for label, values in comparison.settings.items()}
    keys = sorted({key for values in settings.values() for key in values})
    if not keys:
        return ()
    rows = [[key, *(f"{values[key]}" if key in values else "–" for values in settings.values())] for key in keys]
    columns = ["setting", *settings]
    table = Table(
        name="Where the configs differ",
        caption="A dash stands where a config has no such setting.",
        columns=columns,
        rows=rows,
        left=columns,
        tones=["" for _ in rows],
        records=[dict(zip(columns, row, strict=True)) for row in rows],
    )
    return (table,)
