"""Ancestral sampling from a start of masks and random tokens (ReDi, Yoo et al. 2507.15897).

For students that were trained to make something of a random start (objectives/redi.py): different starts lead to
different samples, so that a step's tokens depend on each other through what they started from. Every masked position of
the canvas is drawn once, whatever it started as; prompts are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from students.samplers.ancestral import reveal, reveal_transitions
from students.samplers.sampler import LOG_LINEAR, Draw, SampleOutput, Sampler, SamplerConfig
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform


class RandomStartConfig(SamplerConfig):
    """``random_share`` as in training: the part of the masks that random tokens replace; with 0, ancestral sampling."""

    name: Literal["random_start"] = "random_start"  # type: ignore[assignment]
    random_share: float = Field(0.0, ge=0, le=1)  # [own] as `objectives.redi.RediConfig`; [code] 0.7 for images

    def build(self, critic: nn.Module | None = None) -> Sampler:
        """See `SamplerConfig.build`."""

        def sampler(
            denoiser: Denoiser,
            canvas: Tensor,
            steps: int,
            generator: torch.Generator,
            process: MaskedProcess = LOG_LINEAR,
            draw: Draw = "exact",
        ) -> SampleOutput:
            masked = canvas == denoiser.spec.mask_id
            start = random_start(canvas, masked, self.random_share, denoiser.spec, generator)
            transition = reveal_transitions(masked.shape, steps, generator, process)
            out = reveal(denoiser, start, masked, transition, steps, generator, draw)
            # known given the start, but where that all but decides the text, the bound from it is empty
            return replace(out, log_prob=None)

        return sampler


def random_start(canvas: Tensor, where: Tensor, share: float, spec: DenoiserSpec, randomness: Randomness) -> Tensor:
    """Put a token, uniform over all but the mask, into each position of ``where`` with probability ``share``.

    Args:
        canvas, where: (B, L).
    """
    if share == 0:
        return canvas
    replaced = where & (uniform(randomness, *canvas.shape) < share)
    tokens = (uniform(randomness, *canvas.shape) * (spec.vocabulary - 1)).long()
    return torch.where(replaced, tokens + (tokens >= spec.mask_id), canvas)
