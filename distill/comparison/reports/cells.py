"""The cells of a comparison's table, whatever it is written in."""

from __future__ import annotations

from distill.comparison.results import Comparison
from distill.comparison.summary import Summary, summarise
from distill.evaluation.reports.cells import DIVERGENCE, perplexity_text
from distill.evaluation.results import Figures, Interval, Row

NAMES = {"judge_perplexity": "judge PPL", "excess_nats": "excess nats", "divergence_nats": "divergence nats"}


def columns(comparison: Comparison) -> list[str]:
    """Headings of the table; beside a divergence stands the excess, whose sign tells sharp from blurred."""
    key = comparison.quality
    excess = [NAMES["excess_nats"]] if key == "divergence_nats" else []
    return [
        "steps", "model", "seeds", NAMES[key], "spread", *excess, "unigram H", "bigram H", "distinct-2",
        "NFE", "critic NFE", "seconds", "updates", "train s", "rows s", "dominated by",
    ]  # fmt: skip


def table_sections(comparison: Comparison) -> list[list[list[str]]]:
    """Cells under `columns`: what students are held against, then a section per number of steps, the best first."""
    key, limit = comparison.quality, comparison.teacher_steps
    summaries = summarise(comparison.runs, key, comparison.sampling.temperature)
    steps = sorted(({one.steps for one in summaries} | {row.steps for row in comparison.own_teacher}) - {limit})
    if any(one.steps == limit for one in summaries):
        steps.append(limit)
    head = [] if comparison.reference is None else [_reference_cells("real text", "–", comparison.reference, key)]
    if limit not in steps:
        head += _teacher_cells(comparison, limit, f"{limit:,}", key)
    sections = [head]
    for count in steps:
        here = sorted((one for one in summaries if one.steps == count), key=lambda one: one.quality)
        teacher = _teacher_cells(comparison, count, str(count), key)
        sections.append(teacher + [_student_cells(one, key) for one in here])
    return [section for section in sections if section]


def caption(comparison: Comparison) -> str:
    """What was sampled, how, who judged, and what the columns mean."""
    sampling, judge, budget = comparison.sampling, comparison.judge, comparison.command.budget
    read = ", retokenized" if judge.retokenized else ""
    bound = f"; {DIVERGENCE}" if comparison.quality == "divergence_nats" else ""
    spent = "minutes of training" if budget.endswith("m") else "updates"
    return (
        f"budget {budget[:-1]} {spent}; the average after the last update; means over seeds, of "
        "perplexity that of all their samples; spread: of students the least and the greatest seed, of teacher and "
        "real text a 95% bootstrap interval over samples; "
        f"{sampling.size} a run, {sampling.sampler} sampler, "
        f"{sampling.draw} draws, {sampling.precision}, {sampling.device}; judge {judge.name} "
        f"({judge.parameters / 1e6:,.1f} M parameters{read}){bound}; entropies in nats; "
        "NFE: mean passes a sequence; seconds of sampling all samples; "
        "train s: from the start of the first update to the end of the last; "
        "rows s: before it, for what the teacher wrote to be learned from, outside the budget; "
        "dominated by: who is better at equal or higher bigram entropy"
    )


def quality_text(value: float, key: str) -> str:
    """A figure of quality with as many digits as mean something."""
    return perplexity_text(value) if key == "judge_perplexity" else f"{value:.4f}"


def _bounds(ends: Interval | None, key: str) -> str:
    return "–" if ends is None else f"{quality_text(ends[0], key)}–{quality_text(ends[1], key)}"


def _teacher_cells(comparison: Comparison, steps: int, shown: str, key: str) -> list[list[str]]:
    return [_reference_cells("teacher", shown, row, key) for row in comparison.own_teacher if row.steps == steps]


def _reference_cells(name: str, steps: str, row: Figures, key: str) -> list[str]:
    value, cost = getattr(row, key), ["–"] * 3
    if isinstance(row, Row):
        cost = [f"{row.nfe:.1f}", f"{row.critic_nfe:.1f}", f"{row.seconds:.1f}"]
    quality = "–" if value is None else quality_text(value, key)
    bounds = _bounds(getattr(row, f"{key}_ci"), key)
    return [steps, name, "–", quality, bounds, *_beside(row, key), *cost, "–", "–", "–", ""]


def _beside(row: Figures | Summary, key: str) -> list[str]:
    """Cells of what quality must be read with: the excess, where ``key`` is a divergence, and diversity."""
    excess = [f"{row.excess_nats:.4f}"] if key == "divergence_nats" else []
    return [*excess, f"{row.unigram_entropy:.3f}", f"{row.bigram_entropy:.3f}", f"{row.distinct_2:.3f}"]


def _student_cells(one: Summary, key: str) -> list[str]:
    cost = [f"{one.nfe:.1f}", f"{one.critic_nfe:.1f}", f"{one.seconds:.1f}", f"{one.updates:,}"]
    best, *more = one.dominated_by or [""]
    return [
        str(one.steps),
        one.label,
        str(one.seeds),
        quality_text(one.quality, key),
        _bounds(one.spread, key),
        *_beside(one, key),
        *cost,
        f"{one.train_seconds:,.0f}",
        f"{one.rows_seconds:,.0f}",
        best + (f" and {len(more)} more" if more else ""),
    ]
