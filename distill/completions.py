"""Completions: what a model writes after prompts, through any rule, up to its first end-of-text token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distill.generation import ROWS, continuation, first_end, steps_of_rows
from distill.runtime.world import ALONE, World
from students.fill import Filled, fill_to_length
from students.samplers import LOG_LINEAR, Sampler
from students.samplers.planned import PlannedSampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec, end_ids
from teachers.errors import UserError
from teachers.process import MaskedProcess

Padding = Literal["none", "right"]
"""Whether rows are equally long, or have equally many tokens to write, as of `Canvas.prompted`."""


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt, and what it cost.

    Attributes:
        text: up to the first end-of-text token, without special tokens.
        tokens: written up to that token, which counts as one of them.
        ended: whether there is such a token.
        nfe: forward passes that the row took. critic_nfe: of any other network. length_nfe: passes before these, which
            found out the text's length; None where nothing looked for it.
    """

    text: str
    tokens: int
    ended: bool
    nfe: int
    critic_nfe: int
    length_nfe: int | None = None

    @property
    def passes(self) -> int:
        """All passes of the model that writes, those for the length too."""
        return self.nfe + (self.length_nfe or 0)


@torch.no_grad()  # not inference_mode: a guided sampler needs gradients
def complete(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    length: int,
    sampler: Sampler,
    steps: int,
    seed: int,
    batch: int = ROWS,
    process: MaskedProcess = LOG_LINEAR,
    critic: nn.Module | None = None,
    world: World = ALONE,
    padding: Padding = "none",
) -> list[Completion]:
    """Write after each prompt, ``batch`` of them at once, on every process of ``world``.

    A row is laid out as rows are in training: the prompt from column 0, and all the rest to be written. Its noise is
    fixed by (seed, steps, its number), so that neither ``batch`` nor the number of processes changes a completion,
    but for ``draw: float32-gumbel``, which draws for a batch at once, and for rows that are padded.

    Args:
        prompts: N lists of tokens, of different lengths; a list may be empty.
        length: tokens of a row, prompt included; with padding "right" tokens to write in each, the rows of a batch
            being padded to the longest.
        steps: what the sampler counts; a row takes no more passes than it has tokens to write.

    Returns:
        N completions in the order of the prompts, on every process.

    Raises:
        UserError: see `check_prompts`, and `students.fill.fill`.
    """
    spec = denoiser.spec
    check_prompts(spec, prompts, length, padding=padding)

    def write(rows: range) -> list[Completion]:
        part = prompts[rows.start : rows.stop]
        canvas = Canvas.prompted(part, length, spec.mask_id, pad_id=spec.pad_id, padding=padding).to(denoiser.device)
        randomness = sampler.randomness(seed, (steps,), rows, denoiser.device)
        # the reverse process has as many transitions as it is told, whatever there is to write
        most = steps if isinstance(sampler, PlannedSampler) else steps_of_rows(canvas, sampler, steps)
        filled = fill_to_length(denoiser, canvas, sampler, most, randomness, process=process, critic=critic)
        return _completions(tokenizer, end_ids(denoiser), part, length, filled)

    return [completion for part in world.share(len(prompts), batch, write, sampler.by_row) for completion in part]


def check_prompts(
    spec: DenoiserSpec,
    prompts: Sequence[Sequence[int]],
    length: int,
    places: Sequence[str] | None = None,
    padding: Padding = "none",
) -> None:
    """Refuse prompts that can not be completed, before anything is.

    Args:
        length, padding: as of `complete`. places: where each of them stands, for messages; their numbers by default.

    Raises:
        UserError: rows that are longer than the model takes, a prompt that leaves no room, or one with a mask in it.
    """
    for number, prompt in enumerate(prompts):
        row = length if padding == "none" else len(prompt) + length
        if row > spec.max_length:
            raise UserError(f"length {row} is more than the model's {spec.max_length} positions; give a smaller one")
        name = f"prompt {number + 1}" if places is None else f"the prompt in {places[number]}"
        if len(prompt) >= row:
            raise UserError(
                f"{name} has {len(prompt)} tokens and the canvas {row}, which leaves none to write; give a shorter "
                "prompt, or a larger length"
            )
        if spec.mask_id in prompt:
            raise UserError(f"{name} holds the mask token, which stands for what is to be written; take it out")


def _completions(
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: Sequence[int],
    prompts: Sequence[Sequence[int]],
    length: int,
    filled: Filled,
) -> list[Completion]:
    passes = (filled.nfe, filled.critic_nfe, *([] if filled.length_nfe is None else [filled.length_nfe]))
    costs = zip(*(part.tolist() for part in passes), strict=True)
    completions = []
    for prompt, tokens, cost in zip(prompts, filled.tokens.tolist(), costs, strict=True):
        written = tokens[len(prompt) :][:length]  # without padding
        end = first_end(written, end_tokens)
        text = continuation(tokenizer, prompt, written[:end])
        completions.append(Completion(text, len(written) if end is None else end + 1, end is not None, *cost))
    return completions
