"""Ancestral sampling from a start of masks and random tokens (ReDi, Yoo et al. 2507.15897).

For students that were trained to make something of a random start (objectives/redi.py): different starts lead to
different samples, so that a step's tokens depend on each other through what they started from. Every open position of
the canvas is drawn once, whatever it started as; prompts are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.samplers.ancestral import reveal_transitions
from students.samplers.planned import PlannedSampler
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform


class RandomStart(PlannedSampler):
    """``random_share`` as in training: the part of the masks that random tokens replace; with 0, ancestral sampling."""

    bounded: ClassVar[bool] = False
    name: Literal["random_start"] = "random_start"
    random_share: float = Field(default=0.0, ge=0, le=1)  # [own] as `objectives.redi.RediConfig`; [code] 0.7 for images

    @property
    def blind(self) -> bool:
        """A text's law is known given its start, but where that all but decides it, the bound from it is empty."""
        return False

    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """See `PlannedSampler.transitions`."""
        return reveal_transitions(canvas.tokens.shape, steps, randomness, process, canvas.real)

    def start(self, canvas: Canvas, spec: DenoiserSpec, randomness: Randomness) -> Canvas:
        """Random tokens in some of the open positions."""
        return random_start(canvas, self.random_share, spec, randomness)


def random_start(canvas: Canvas, share: float, spec: DenoiserSpec, randomness: Randomness) -> Canvas:
    """Put a token, uniform over all that text has, into each open position with probability ``share``."""
    if share == 0:
        return canvas
    replaces, which = (uniform(randomness, *canvas.tokens.shape, real=canvas.real) for _ in range(2))
    replaced, tokens = canvas.open & (replaces < share), random_tokens(which, spec)
    return replace(canvas, tokens=torch.where(replaced, tokens, canvas.tokens))


def random_tokens(uniforms: Tensor, spec: DenoiserSpec) -> Tensor:
    """Uniforms in [0, 1) → tokens, uniform over all that text has."""
    tokens = spec.tokens(uniforms.device)
    return tokens[(uniforms * len(tokens)).long()]
