"""The cells of an evaluation's table, whatever it is written in."""

from __future__ import annotations

from distill.evaluation.results import Evaluation, Figures, Row, at_own_temperature
from students.samplers import SAMPLERS

COLUMNS = [
    "model", "steps", "NFE", "critic NFE", "judge PPL", "95% interval", "unigram H", "bigram H", "distinct-2",
    "seconds", "tokens/s",
]  # fmt: skip
AXES = {
    "judge_perplexity": "judge perplexity",
    "excess_nats": "nats per token above the source's entropy",
    "divergence_nats": "bound on KL to the source, nats a token",
}
LENGTH = "length NFE: passes before these, which find out how long the text will be"
DIVERGENCE = "divergence: an upper bound on KL to the source, nats a token"


def columns(evaluation: Evaluation) -> list[str]:
    """`COLUMNS`, and what is worth one more.

    With an adaptive sampler, whose passes differ from row to row, how they are distributed; where passes are spent on
    the length of texts, how many; where temperatures differ, which; where the judge knows the source, the excess over
    its entropy and, where there is one, the divergence from it, nats a token.
    """
    names = list(COLUMNS)
    if _has_temperatures(evaluation):
        names.insert(names.index("NFE"), "temperature")
    if evaluation.judge.source_entropy is not None:
        names.insert(names.index("unigram H"), "excess")
    if _has_divergence(evaluation):
        names.insert(names.index("unigram H"), "divergence")
    if _is_adaptive(evaluation):
        names[names.index("critic NFE") : names.index("critic NFE")] = ["NFE median", "NFE p95"]
    if _has_length(evaluation):
        names.insert(names.index("critic NFE"), "length NFE")
    return names


def table_rows(evaluation: Evaluation) -> list[list[str]]:
    """Cells under `columns`: real text first, then teacher, student and engines; "–" where nothing applies."""
    rows = []
    adaptive, sized, divergence = _is_adaptive(evaluation), _has_length(evaluation), _has_divergence(evaluation)
    warm = _has_temperatures(evaluation)
    if evaluation.reference is not None:
        passes = ["–", "–"] * adaptive + ["–"] * sized
        rows.append(
            ["real text", "–", *["–"] * warm, "–", *passes, "–", *_quality(evaluation.reference, divergence), "–", "–"]
        )
    for row in (*evaluation.rows, *(evaluation.served or ())):
        spread, length = [row.nfe_median, row.nfe_p95] * adaptive, [row.length_nfe] * sized
        passes = ["–" if n is None else f"{n:.1f}" for n in (row.nfe, *spread, *length, row.critic_nfe)]
        speed = [f"{row.seconds:.1f}", f"{row.tokens_per_second:,.0f}"]
        heat = ["–" if row.temperature is None else f"{row.temperature:g}"] * warm
        rows.append([row.model, str(row.steps), *heat, *passes, *_quality(row, divergence), *speed])
    return rows


def caption(evaluation: Evaluation) -> str:
    """One line: what was sampled, how, and who judged."""
    sampling, judge = evaluation.sampling, evaluation.judge
    read = ", retokenized" if judge.retokenized else ""
    known = "" if judge.source_entropy is None else f", source entropy {judge.source_entropy:.4f} a token"
    bound = f"; {DIVERGENCE}" if _has_divergence(evaluation) else ""
    sized = f"; {LENGTH}" if _has_length(evaluation) else ""
    trained = "" if evaluation.training is None else f"; training: {evaluation.training.words}"
    served = "".join(
        f"; {row.model}: the student as that engine samples, {row.sampler}" for row in evaluation.served or ()
    )
    return (
        f"{sampling.size} a row; {samplers(evaluation)} sampler, "
        f"{sampling.draw} draws, {sampling.precision}; judge {judge.name} "
        f"({judge.parameters / 1e6:,.1f} M parameters{read}{known}){bound}; entropies in nats; "
        f"NFE: mean passes a sequence{sized}{served}{trained}"
    )


def samplers(evaluation: Evaluation) -> str:
    """The rows' sampler, or where they differ each with whose it is."""
    lines, limit = curves(evaluation)
    used: dict[str, list[str]] = {}
    for name, rows in [*lines.items(), *([(f"teacher at {limit.steps:,} steps", [limit])] if limit else [])]:
        used.setdefault(rows[-1].sampler, []).append(name)
    if len(used) == 1:
        return next(iter(used))
    return "; ".join(f"{sampler} ({', '.join(names)})" for sampler, names in used.items())


def curves(evaluation: Evaluation) -> tuple[dict[str, list[Row]], Row | None]:
    """Rows by model at the sampler's own temperature, and the many-step teacher apart when it has the most steps."""
    own = at_own_temperature(evaluation.rows, evaluation.sampling.temperature)
    teacher, student = ([row for row in own if row.model == name] for name in ("teacher", "student"))
    limit = None
    if len(teacher) > 1 and (not student or teacher[-1].steps > student[-1].steps):
        limit = teacher.pop()
    return {name: part for name, part in (("teacher", teacher), ("student", student)) if part}, limit


def perplexity_text(value: float) -> str:
    """A perplexity to three or four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _is_adaptive(evaluation: Evaluation) -> bool:
    kind = SAMPLERS.get(evaluation.sampling.sampler)  # a file may name one of another version
    return kind is not None and kind.adaptive


def _has_temperatures(evaluation: Evaluation) -> bool:
    return any(row.temperature not in (None, 1) for row in evaluation.rows)


def _has_length(evaluation: Evaluation) -> bool:
    return any(row.length_nfe is not None for row in evaluation.rows)


def _has_divergence(evaluation: Evaluation) -> bool:
    return any(row.divergence_nats is not None for row in evaluation.rows)


def _quality(row: Figures, divergence: bool) -> list[str]:
    low, high = row.judge_perplexity_ci
    interval = f"{perplexity_text(low)}–{perplexity_text(high)}"
    entropies = [f"{row.unigram_entropy:.3f}", f"{row.bigram_entropy:.3f}", f"{row.distinct_2:.3f}"]
    excess = [] if row.excess_nats is None else [f"{row.excess_nats:.4f}"]
    return [perplexity_text(row.judge_perplexity), interval, *excess, *[_bound(row)] * divergence, *entropies]


def _bound(row: Figures) -> str:
    """The divergence ± half its 95% interval."""
    if row.divergence_nats is None or row.divergence_nats_ci is None:
        return "–"
    low, high = row.divergence_nats_ci
    return f"{row.divergence_nats:.4f} ± {(high - low) / 2:.4f}"
