"""Which of an evaluation's rows a plot shows, and how its figures are written."""

from __future__ import annotations

from collections.abc import Iterable

from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Evaluation, Figures, Interval, Row, at_own_temperature

SHAPES = {"teacher": "circle", "student": "diamond"}
SHOWN_STEPS = 8
"""That a student is looked at first: what it is exported for unless told otherwise."""


def tone(model: str) -> str:
    """A model's colour; an engine samples from the student."""
    return model if model in SHAPES else "student"


def own_rows(evaluation: Evaluation) -> list[Row]:
    """One row for each model, sampler and number of steps: at the sampler's own temperature, or nearest to it."""
    return at_own_temperature(evaluation.rows, evaluation.sampling.temperature)


def by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each model, by number of passes."""
    models: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.nfe):
        models.setdefault(row.model, []).append(row)
    return {name: models[name] for name in sorted(models, key=lambda name: (name != "teacher", name))}


def shown_steps(evaluation: Evaluation) -> int:
    """The number of steps, of the student if there is one, that is nearest to `SHOWN_STEPS`."""
    students = [row for row in evaluation.rows if row.model == "student"] or list(evaluation.rows)
    return min((row.steps for row in students), key=lambda steps: (abs(steps - SHOWN_STEPS), steps))


def quality_text(value: float, key: str) -> str:
    """A figure of quality with as many digits as mean something."""
    return perplexity_text(value) if key == "judge_perplexity" else f"{value:.4f}"


def ends_text(ends: Interval | None, key: str) -> str:
    """An interval of it."""
    return "–" if ends is None else f"{quality_text(ends[0], key)}–{quality_text(ends[1], key)}"


def note(row: Figures, key: str, name: str) -> str:
    """What a mark says: whose it is, its quality with the interval, and its entropies."""
    value, ends = getattr(row, key), getattr(row, f"{key}_ci")
    passes = f", {row.nfe:.1f} passes, {row.seconds / row.samples:.3g} s a text" if isinstance(row, Row) else ""
    drawn = f", temperature {row.temperature:g}" if isinstance(row, Row) and row.temperature is not None else ""
    return (
        f"{name}{drawn}: {quality_text(value, key)} ({ends_text(ends, key)}); unigram entropy "
        f"{row.unigram_entropy:.3f}, bigram entropy {row.bigram_entropy:.3f} nats{passes}"
    )
