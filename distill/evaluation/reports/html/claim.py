"""What a reader should take home of an evaluation, in words: the student against its teacher at equal diversity."""

from __future__ import annotations

from distill.evaluation.reports.cells import AXES, curves
from distill.evaluation.reports.frontier import is_curved
from distill.evaluation.reports.html.rows import ends_text, own_rows, quality_text, shown_steps, tone
from distill.evaluation.results import Axis, Evaluation, Figures, Frontier, Interval, Row
from distill.pages.blocks import Card, Cards, Prose

PERPLEXITY = "judge_perplexity"


def claim(evaluation: Evaluation) -> Prose:
    """The claim, and what to know before believing it."""
    if not any(row.model == "student" for row in evaluation.rows):
        return Prose(("There is no student here: these are figures of a teacher alone.",), big=True)
    steps, here = shown_steps(evaluation), _frontiers(evaluation)
    if not here:
        return Prose((_plain(evaluation, steps), _missing(evaluation)), big=True)
    how = (
        "Text that says the same over and over has a low perplexity, so models are compared where their text is as "
        "varied as real text: the curve of each over temperatures is read at that entropy."
    )
    return Prose((_headline(_modest(here)), *map(_at_real_entropy, here.values()), how), big=True)


def _frontiers(evaluation: Evaluation) -> dict[Axis, Frontier]:
    """The student's at the number of steps that is looked at first, by axis; none without a curve."""
    own = [one for one in evaluation.frontier or () if one.model == "student"] if is_curved(evaluation) else []
    return {one.axis: one for one in own if one.steps == shown_steps(evaluation)}


def _modest(here: dict[Axis, Frontier]) -> Frontier:
    """Of a student's frontiers the one that claims least, among those that can claim something."""
    compared = [one for one in here.values() if one.to_teacher is not None]
    return max(compared, key=lambda one: one.to_teacher or 0.0) if compared else next(iter(here.values()))


def _headline(one: Frontier) -> str:
    """The student against its teacher in one sentence, or that nothing can be claimed."""
    where = f"In {one.nfe:.3g} passes"
    if one.judge_perplexity is None:
        return (
            f"{where} the student's text is at none of the measured temperatures as varied as real text, so nothing is "
            "claimed of it there."
        )
    where += f" and at the {one.axis} entropy of real text,"
    if one.to_teacher is None:
        return (
            f"{where} the student has a perplexity of {quality_text(one.judge_perplexity, PERPLEXITY)}; its teacher's "
            "text is not as varied in as many steps."
        )
    return f"{where} the student's perplexity is {_ratio(one.to_teacher, one.to_teacher_ci)} its teacher's."


def _at_real_entropy(one: Frontier) -> str:
    """A frontier's figures in words."""
    where = f"By {one.axis} entropy, of which real text has {one.entropy:.3f} nats: "
    if one.judge_perplexity is None:
        return f"{where}the student's curve over temperatures does not reach it."
    value, ends = quality_text(one.judge_perplexity, PERPLEXITY), ends_text(one.judge_perplexity_ci, PERPLEXITY)
    text = f"{where}the student has a perplexity of {value} (95% interval {ends})"
    if one.to_teacher is None:
        text += "; the teacher's curve with the same order and as many steps does not reach it"
    else:
        text += f", {_ratio(one.to_teacher, one.to_teacher_ci)} the teacher's with the same order and as many steps"
    if one.to_many is not None:
        text += f", and {_ratio(one.to_many, one.to_many_ci)} the teacher's with its many steps"
    return text + "."


def _ratio(ratio: float, ends: Interval | None) -> str:
    """A ratio of perplexities in words, with its interval; no direction where the interval holds 1."""
    word = "lower" if ratio < 1 else "higher"
    change = f"{100 * abs(ratio - 1):.0f}% {word} than"
    if ends is None:
        return change
    low, high = (f"{100 * (end - 1):+.0f}%".replace("-", "−") for end in ends)
    if ends[0] <= 1 <= ends[1]:
        return f"not clearly different ({low} to {high}) from"
    return f"{100 * abs(ratio - 1):.0f}% {word} ({low} to {high}) than"


def _plain(evaluation: Evaluation, steps: int) -> str:
    """Student and teacher at the same number of steps, perplexity and entropy together."""
    rows = {row.model: row for row in own_rows(evaluation) if row.steps == steps}
    student = rows["student"]
    text = f"In {student.nfe:.3g} passes the student has {_figure(student, evaluation.quality)}"
    if (teacher := rows.get("teacher")) is None:
        return text + "."
    return f"{text}; its teacher, in {teacher.nfe:.3g}, {_figure(teacher, evaluation.quality)}."


def _figure(row: Row, key: str) -> str:
    return (
        f"{_article(key)} of {quality_text(getattr(row, key), key)} at {row.bigram_entropy:.3f} nats of bigram entropy"
    )


def _article(key: str) -> str:
    return "a perplexity" if key == "judge_perplexity" else AXES[key]


def _missing(evaluation: Evaluation) -> str:
    if evaluation.quality != "judge_perplexity":
        return "The source of the text is known exactly here, so that a sharper text does not count as a better one."
    real = evaluation.reference
    beside = "" if real is None else f" Real text has {real.bigram_entropy:.3f} nats."
    return (
        "A less varied text has a lower perplexity without being better, so these figures alone decide nothing."
        f"{beside} Measured at several evaluate.temperatures, and with real text, both are compared at equal entropy."
    )


def cards(evaluation: Evaluation) -> Cards:
    """Student and teacher at the same number of steps, the teacher at its many, and real text.

    Where there are curves over temperatures, their figures are read off these, on the axis of the headline.
    """
    own, steps, key = own_rows(evaluation), shown_steps(evaluation), evaluation.quality
    _, limit = curves(evaluation)
    shown = [row for row in own if row.steps == steps]
    shown.sort(key=lambda row: row.model != "student")
    shown += [row for row in own if limit is not None and (row.model, row.steps) == ("teacher", limit.steps)]
    axis = _modest(here).axis if (here := _frontiers(evaluation)) else None
    read = {(one.model, one.steps): one for one in evaluation.frontier or () if one.axis == axis}
    parts = [_card_of(row, read.get((row.model, row.steps)), key) for row in shown]
    real = evaluation.reference
    if real is not None and getattr(real, key) is not None:
        parts.append(_card(real, "Real text", "real", key))
    return Cards(tuple(parts))


def _card_of(row: Row, read: Frontier | None, key: str) -> Card:
    """A model's, by its curve where there is one."""
    name, colour = f"{row.model.capitalize()}, {row.steps:,} steps", tone(row.model)
    if read is None:
        return _card(row, name, colour, key)
    value = "–" if read.judge_perplexity is None else quality_text(read.judge_perplexity, PERPLEXITY)
    facts = (
        ("95% interval", ends_text(read.judge_perplexity_ci, PERPLEXITY)),
        (f"{read.axis} entropy", f"{read.entropy:.3f} nats"),
        ("passes", f"{read.nfe:.1f}"),
        ("time for one text", f"{row.seconds / row.samples:.3g} s"),
        ("texts a temperature", f"{row.samples:,}"),
    )
    return Card(name, colour, value, f"{AXES[PERPLEXITY]} at real text's entropy", facts)


def _card(row: Figures, name: str, colour: str, key: str) -> Card:
    axes: tuple[Axis, ...] = ("unigram", "bigram")
    facts = [("95% interval", ends_text(getattr(row, f"{key}_ci"), key))]
    facts += [(f"{axis} entropy", f"{row.entropy(axis):.3f} nats") for axis in axes]
    if isinstance(row, Row):
        facts += [("passes", f"{row.nfe:.1f}"), ("time for one text", f"{row.seconds / row.samples:.3g} s")]
        if row.temperature is not None:
            facts.append(("temperature", f"{row.temperature:g}"))
    facts.append(("texts", f"{row.samples:,}"))
    return Card(name, colour, quality_text(getattr(row, key), key), AXES[key], tuple(facts))
