"""What a model writes after prompts, as data to learn from: one of the right answers, always the same one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.tasks import sudoku, sums
from distill.completions import complete
from distill.finished import open_student
from distill.generation import encoded
from students.samplers import Threshold

Right = Callable[[str, str], bool]

RIGHT: dict[str, Right] = {
    "sums": lambda prompt, completion: sums.is_worked_out(prompt, completion, sums.answer(prompt)),
    "sudoku": lambda prompt, completion: sudoku.is_solution(prompt, completion, ""),
}
"""Task → whether a completion is right after a prompt. Neither task needs to be told an answer."""


def texts(
    model: str, prompts: Path, rows: int, threshold: float, length: int, right: Right | None = None
) -> list[dict[str, str]]:
    """The first so many prompts of a JSONL file, each with the model's greedy completion, if that has an end.

    Args:
        threshold: every pass writes what is at least so certain (`students.samplers.Threshold`).
        length: tokens of prompt and completion.
        right: only completions of which this says so are kept.
    """
    student = open_student(model)
    lines = prompts.read_text("utf-8").splitlines()[:rows]
    given = [json.loads(line)["prompt"] for line in lines]
    ids = [encoded(student.tokenizer, prompt) for prompt in given]
    sampler = Threshold(threshold=threshold, draw="greedy")
    written = complete(student.denoiser, student.tokenizer, ids, length, sampler, length, seed=0)
    pairs = [(prompt, one.text) for prompt, one in zip(given, written, strict=True) if one.ended]
    return [{"prompt": p, "completion": c} for p, c in pairs if right is None or right(p, c)]
