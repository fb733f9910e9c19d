"""`fewstep generate`: text from a student."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from distill.finished import open_student
from distill.generation import ROWS, Generated, generate
from distill.runtime.compilation import compile_network, say_compile_time
from distill.runtime.messages import say, write_text
from distill.runtime.progress import track
from distill.runtime.threads import few_for_small
from distill.runtime.world import keep_memory


def generate_command(
    folder: str,
    steps: int | None = None,
    prompts: Sequence[str] = (),
    num: int = 1,
    length: int | None = None,
    seed: int | None = None,
    sampler: str | None = None,
    temperature: float | None = None,
    as_json: bool = False,
    chat: bool = False,
    compiled: bool = False,
) -> list[str]:
    """Print texts on stdout, and what they cost on stderr.

    Args:
        folder: an export, another model folder, or a run folder.
        steps, prompts, num, length, seed, sampler, temperature, chat: see `generate`.
        compiled: whether passes are compiled, see `teachers.compilation`.
        as_json: a JSON object in a line of its own for each text, instead of the text.

    Returns:
        The texts.

    Raises:
        UserError: see `open_student` and `generate`.
    """
    keep_memory()
    student = open_student(folder)
    rows = min(num * max(1, len(prompts)), ROWS)
    few_for_small(sum(p.numel() for p in student.denoiser.parameters()), rows * (length or student.canvas_length))
    student.denoiser.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    compile_network(student.denoiser, compiled)
    generated = generate(
        student, prompts, num, steps, sampler, temperature, seed, length, chat,
        track=lambda batches: track(batches, f"writing, {ROWS} at once", total=len(batches)),
    )  # fmt: skip
    print_json(generated) if as_json else print_texts(generated.texts)
    count, nfe, sized = len(generated.texts), generated.nfe.double(), generated.length_nfe
    before = "" if sized is None else f" and {sized.double().mean():.2f} for its length"
    say(
        f"{count} x {generated.written / count:g} tokens in {generated.seconds:.2f} s: "
        f"{generated.written / generated.seconds:,.0f} tokens/s, NFE {nfe.mean():.2f} a text (at most "
        f"{int(nfe.max())}){before}, {generated.sampler.label}, {generated.steps} steps, seed {generated.seed}"
    )
    say_compile_time()
    return generated.texts


def print_texts(texts: list[str]) -> None:
    """One text as it is; several under a line each that says which."""
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            write_text(f"--- {number} of {len(texts)} ---")
        write_text(text)


def print_json(generated: Generated) -> None:
    """One line a text, for programs: whatever the text holds, the line ends where it does."""
    costs = {"nfe": generated.nfe, "length_nfe": generated.length_nfe, "log_prob": generated.log_prob}
    values = [[None] * len(generated.texts) if cost is None else cost.tolist() for cost in costs.values()]
    for prompt, text, *cost in zip(generated.prompts, generated.texts, *values, strict=True):
        write_text(json.dumps({"prompt": prompt, "text": text, **dict(zip(costs, cost, strict=True))}))
