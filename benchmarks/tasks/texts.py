"""What a model writes after prompts, as data to learn from: one of the right answers, always the same one."""

from __future__ import annotations

import json
from pathlib import Path

from distill.completions import complete
from distill.finished import open_student
from distill.generation import encoded
from students.samplers import Threshold


def texts(model: str, prompts: Path, rows: int, threshold: float, length: int) -> list[dict[str, str]]:
    """The first so many prompts of a JSONL file, each with the model's greedy completion, if that has an end.

    Args:
        threshold: every pass writes what is at least so certain (`students.samplers.Threshold`).
        length: tokens of prompt and completion.
    """
    student = open_student(model)
    lines = prompts.read_text("utf-8").splitlines()[:rows]
    given = [json.loads(line)["prompt"] for line in lines]
    ids = [encoded(student.tokenizer, prompt) for prompt in given]
    sampler = Threshold(threshold=threshold, draw="greedy")
    written = complete(student.denoiser, student.tokenizer, ids, length, sampler, length, seed=0)
    return [{"prompt": prompt, "completion": one.text} for prompt, one in zip(given, written, strict=True) if one.ended]
