"""The figures of an evaluation beside perplexity, in a table of their own; and its rows as a paper measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distill.evaluation.reports.cells import perplexity_text
from distill.evaluation.results import Evaluation, Figures, Row

Cell = Callable[[Figures], str | None]


def _number(name: str, digits: int) -> Cell:
    def cell(figures: Figures) -> str | None:
        value = getattr(figures, name)
        return None if value is None else f"{value:.{digits}f}"

    return cell


def _energy(figures: Figures) -> str | None:
    if figures.energy_distance is None or figures.energy_null is None:
        return None
    return f"{figures.energy_distance:.3f} ({figures.energy_null:.3f})"


def _lengths(figures: Figures) -> str | None:
    if figures.length_mean is None or figures.length_quantiles is None:
        return None
    low, _, high = figures.length_quantiles
    return f"{figures.length_mean:.1f} ({low:.0f}–{high:.0f})"


CELLS: dict[str, Cell] = {
    "distinct-3": _number("distinct_3", 3),
    "distinct-4": _number("distinct_4", 3),
    "rep-4": _number("repetition_4", 3),
    "run": _number("longest_run", 2),
    "self- BLEU": _number("self_bleu", 3),
    "MAUVE": _number("mauve", 3),
    "gradient moment": _number("gradient_moment", 3),
    "energy (null)": _energy,
    "overlap": _number("overlap_mean", 1),
    "overlap max": _number("overlap_max", 0),
    "overlap share": _number("overlap_share", 3),
    "length (5–95%)": _lengths,
    "ended": _number("length_ended", 2),
    "length distance": _number("length_distance", 2),
}
LENGTHS = ("length (5–95%)", "ended", "length distance")
MEANINGS = {
    "rep-4": "rep-4: share of a text's 4-grams that came before",
    "run": "run: longest of one token",
    "gradient moment": "gradient moment, energy: distance to real text, less is nearer",
    "energy (null)": "in brackets what texts of one law stay below 95 times in 100",
    "overlap": "overlap: tokens in a row that stand in the training text",
}


def measured_rows(evaluation: Evaluation) -> list[tuple[list[str], Figures]]:
    """What the table has a line for, each with its first two cells: real text, and rows at the sampler's temperature.

    Empty where a file of an earlier version has none of these figures.
    """
    own = evaluation.sampling.sampler_settings.get("temperature", 1.0)
    real = [] if evaluation.reference is None else [(["real text", "–"], evaluation.reference)]
    rows = [([row.model, str(row.steps)], row) for row in evaluation.rows if row.temperature in (None, own)]
    lines: list[tuple[list[str], Figures]] = [*real, *rows]
    return lines if any(figures.distinct_3 is not None for _, figures in lines) else []


def other_columns(evaluation: Evaluation) -> list[str]:
    """The columns that some line has a value for; lengths only where some text is shorter than the canvas."""
    lines = [figures for _, figures in measured_rows(evaluation)]
    names = [name for name, cell in CELLS.items() if any(cell(figures) is not None for figures in lines)]
    if not any(figures.length_ended for figures in lines):
        names = [name for name in names if name not in LENGTHS]
    return ["model", "steps", *names]


def other_rows(evaluation: Evaluation) -> list[list[str]]:
    """Cells under `other_columns`."""
    names = other_columns(evaluation)[2:]
    return [[*first, *(CELLS[name](figures) or "–" for name in names)] for first, figures in measured_rows(evaluation)]


def other_caption(evaluation: Evaluation) -> str:
    """One line: what the figures are, and what they were measured with."""
    names, tools = other_columns(evaluation), evaluation.instruments
    said = [meaning for name, meaning in MEANINGS.items() if name in names]
    if tools is not None and tools.featuriser is not None:
        said.append(
            f"MAUVE, gradient moment and energy: in {tools.featuriser} against {tools.real_texts} real texts, MAUVE "
            f"with {tools.mauve_clusters} clusters and scaling {tools.mauve_scaling:g}, the gradient moment of "
            f"{tools.gradient_texts} texts"
        )
    if tools is not None and tools.training_tokens is not None:
        said.append(f"training text: {tools.training_tokens:,} tokens")
    return "; ".join(said)


@dataclass(frozen=True)
class Sheet:
    """A table, whatever it is written in."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str


def further_sheets(evaluation: Evaluation) -> list[Sheet]:
    """What stands below an evaluation's table: the figures beside perplexity, and rows as a paper measures them."""
    sheets = []
    if measured_rows(evaluation):
        sheets.append(
            Sheet("Other figures", other_columns(evaluation), other_rows(evaluation), other_caption(evaluation))
        )
    if evaluation.published:
        rows, caption = published_rows(evaluation), published_caption(evaluation)
        sheets.append(Sheet("As published, and exactly", PUBLISHED_COLUMNS, rows, caption))
    return sheets


PUBLISHED_COLUMNS = [
    "model", "steps", "measured", "sampler", "judge PPL", "95% interval", "unigram H", "bigram H", "distinct-4",
    "seconds",
]  # fmt: skip


def published_rows(evaluation: Evaluation) -> list[list[str]]:
    """Each row that was measured as a paper does, under the row that it is beside."""
    lines = []
    for row in evaluation.published or ():
        exact = [own for own in evaluation.rows if _is_beside(own, row)]
        lines += [_line(own, f"{evaluation.sampling.draw} draws") for own in exact]
        lines.append(_line(row, f"as {evaluation.protocol.name}" if evaluation.protocol else "as published"))
    return lines


def published_caption(evaluation: Evaluation) -> str:
    """One line: whose protocol, and where it was read."""
    protocol = evaluation.protocol
    if protocol is None:
        return ""
    return (
        f"as {protocol.name}: of a text's end-of-text tokens {protocol.end_of_text} scored; published with judge "
        f"{protocol.judge}, here {evaluation.judge.name}; {protocol.source}"
    )


def _is_beside(own: Row, published: Row) -> bool:
    return (own.model, own.steps) == (published.model, published.steps) and own.temperature in (
        None, published.temperature,
    )  # fmt: skip


def _line(row: Row, measured: str) -> list[str]:
    low, high = (perplexity_text(end) for end in row.judge_perplexity_ci)
    variety = "–" if row.distinct_4 is None else f"{row.distinct_4:.3f}"
    return [
        row.model, f"{row.steps:,}", measured, row.sampler, perplexity_text(row.judge_perplexity), f"{low}–{high}",
        f"{row.unigram_entropy:.3f}", f"{row.bigram_entropy:.3f}", variety, f"{row.seconds:.1f}",
    ]  # fmt: skip
