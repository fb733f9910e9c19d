"""What was written: the same prompts in various numbers of passes, and canvases as they fill."""

from __future__ import annotations

from distill.evaluation.answers import Answer, Answers, Written
from distill.evaluation.reports.html.rows import SHOWN_STEPS
from distill.pages import blocks
from distill.pages.blocks import Piece, Strip, Text


def answer_blocks(answers: Answers, owner: str = "") -> list[blocks.Answers]:
    """A block for each prompt: the teacher's texts on the left, on the right the student's in as many steps.

    Beside the teacher's many steps stands how real text goes on.
    """
    steps = sorted({one.steps for one in answers.answers}, reverse=True)
    return [
        blocks.Answers(owner, prompt, tuple(_pair(answers, number, count) for count in steps))
        for number, prompt in enumerate(answers.prompts)
    ]


def _pair(answers: Answers, number: int, steps: int) -> tuple[Text | None, Text | None]:
    here = {one.model: _text(one, number) for one in answers.answers if one.steps == steps}
    first = steps == max(one.steps for one in answers.answers)
    if first and answers.real is not None and "student" not in here:
        here["student"] = Text("Real text", "real", "as it goes on", answers.real[number].strip())
    return here.get("teacher"), here.get("student")


def _text(one: Answer, number: int) -> Text:
    cost = f"{one.nfe:.3g} passes, {one.sampler}, {one.seconds / len(one.texts):.2g} s"
    return Text(_name(one), one.model, cost, one.texts[number].strip())


def strip_blocks(answers: Answers, owner: str = "") -> list[Strip]:
    """The student's canvas, and under it the teacher's in as many steps and in its many."""
    drawn = [one for one in answers.answers if one.canvas]
    students = [one for one in drawn if one.model == "student"]
    teachers = [one for one in drawn if one.model == "teacher"]
    chosen = [*_nearest(students), *_nearest(teachers), *teachers[:1]]
    return [_strip(one, owner) for one in dict.fromkeys(chosen)]


def _nearest(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda one: abs(one.steps - SHOWN_STEPS))[:1]


def _strip(one: Answer, owner: str) -> Strip:
    pieces = tuple(_piece(token) for token in one.canvas)
    passes = max(piece.written for piece in pieces)
    again = sum(bool(piece.earlier) for piece in pieces)
    return Strip(
        name=_name(one),
        owner=owner,
        tone=one.model,
        caption=f"{len(pieces)} tokens in {passes} passes, {one.sampler}; grey letters are the prompt, and a colour is "
        "the pass that wrote a token." + f" {again} of them were written more than once." * bool(again),
        pieces=pieces,
    )


def _piece(token: Written) -> Piece:
    earlier = tuple((text.replace("\n", "↵"), number) for text, number in token.earlier)
    return Piece(token.text.replace("\n", "↵"), token.number, earlier)


def _name(one: Answer) -> str:
    return f"{one.model.capitalize()}, {one.steps:,} steps"
