"""`fewstep generate`: text from a student."""

from __future__ import annotations

import re
import secrets
import time

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.models import open_student
from distill.runtime.progress import console, track
from students.fill import fill
from students.samplers import SAMPLERS
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError, nearest
from teachers.process import MaskedProcess
from teachers.source import reason

ROWS = 64  # canvases in a batch [own]
# a model of bytes can write terminal escapes; line feed and tab are text
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def generate_command(
    folder: str,
    steps: int | None = None,
    prompt: str | None = None,
    num: int = 1,
    length: int | None = None,
    seed: int | None = None,
    sampler: str | None = None,
) -> list[str]:
    """Print texts on stdout, and what they cost on stderr.

    Args:
        folder: an export, another model folder, or a run folder.
        steps: reverse transitions; by default what the export was made for.
        prompt: kept at the start of every text. Mask tokens written out in it are filled like the rest.
        num: texts.
        length: tokens a text, prompt included; by default what the student was trained on.
        seed: the same seed gives the same texts; by default drawn, and printed.
        sampler: a key of `SAMPLERS`; by default what the student was made for.

    Returns:
        The texts, end-of-text tokens as blank lines.

    Raises:
        UserError: see `open_student`; a value out of range, or a prompt that does not fit or can not be encoded.
    """
    for flag, value in (("--num", num), ("--steps", steps), ("--length", length)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} is too small; give at least 1")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} is outside 0 to 2^63 - 1; give another one")
    if sampler is not None and sampler not in SAMPLERS:
        raise UserError(
            f"--sampler {sampler!r} is unknown{nearest(sampler, list(SAMPLERS))}; allowed are {', '.join(SAMPLERS)}"
        )
    student = open_student(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser, tokenizer = student.denoiser.to(device), student.tokenizer
    canvas = build_canvas(tokenizer, denoiser.spec, prompt, length or student.canvas_length).to(device)
    masked = int((canvas == denoiser.spec.mask_id).sum())
    steps = steps or student.steps
    if steps > masked:
        raise UserError(
            f"--steps {steps} is more steps than tokens: {masked} are to be written; give --steps {masked} or fewer, "
            "or a larger --length"
        )
    seed = secrets.randbits(32) if seed is None else seed
    generator = torch.Generator(device).manual_seed(seed)
    process = MaskedProcess(student.schedule)
    how = student.sampler if sampler in (None, student.sampler.name) else SAMPLERS[sampler]()
    start, tokens, passes = time.perf_counter(), [], []
    for rows in track(canvas.expand(num, -1).split(ROWS), "writing", total=-(-num // ROWS)):
        output = fill(denoiser, Canvas.of(rows, denoiser.spec.mask_id), how, steps, generator, process=process)
        tokens.append(output.tokens.cpu())
        passes.append(output.nfe.cpu())
    seconds = time.perf_counter() - start
    texts = [_text(tokenizer, row) for row in torch.cat(tokens)]
    _print(texts)
    nfe = torch.cat(passes).double()
    console.print(
        f"{num} x {masked} tokens in {seconds:.2f} s: {num * masked / seconds:,.0f} tokens/s, "
        f"NFE {nfe.mean():.2f} a text (at most {int(nfe.max())}), {how.label}, {steps} steps, seed {seed}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return texts


def build_canvas(tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec, prompt: str | None, length: int) -> Tensor:
    """(1, length) tokens: the prompt's, then masks.

    Raises:
        UserError: longer than the model's positions, a prompt that leaves no room, or one that can not be encoded.
    """
    if length > spec.max_length:
        raise UserError(f"--length {length} is more than the model's {spec.max_length} positions; give a smaller one")
    canvas = torch.full((1, length), spec.mask_id)
    if not prompt:
        return canvas
    try:
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # surrogates, which bytes that are not UTF-8 become; or a word tokenizer's unknown word
        raise UserError(
            f"--prompt {prompt!r} can not be encoded ({reason(error)}); give valid UTF-8 text of known words"
        ) from error
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UserError(f"--prompt {prompt!r} has characters that the tokenizer does not know; leave them out")
    if len(ids) >= length:
        raise UserError(
            f"--prompt has {len(ids)} tokens and the canvas {length}, which leaves none to write; "
            f"give a shorter prompt, or a larger --length up to {spec.max_length}"
        )
    canvas[0, : len(ids)] = torch.tensor(ids)
    return canvas


def _text(tokenizer: PreTrainedTokenizerBase, row: Tensor) -> str:
    """What follows an end-of-text token is another document: nothing is cut, a blank line parts them."""
    text = tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.replace(tokenizer.eos_token, "\n\n") if tokenizer.eos_token else text


def _print(texts: list[str]) -> None:
    out = Console()
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            console.print(f"--- {number} of {len(texts)} ---", highlight=False, markup=False)
        out.print(CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), markup=False, highlight=False, soft_wrap=True)
