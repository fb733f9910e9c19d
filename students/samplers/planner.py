"""Commit what a learned planner says (students/planner.py; dUltra 2512.21446's Bernoulli planner head).

Each pass draws every masked token exactly and commits a random set of positions, never none: S ~ P(S | S ≠ ∅). The
planner sees the canvas and not the tokens drawn, so nothing is sharpened by the choice.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from students.planner import base_logits, draw_commits, surroundings
from students.samplers.sampler import (
    LOG_LINEAR,
    Draw,
    SampleOutput,
    Sampler,
    SamplerConfig,
    commit_by,
)
from teachers.chunks import scatter
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import uniform


class PlannerConfig(SamplerConfig):
    """``bias`` is added to every logit: above 0 fewer passes than were trained for, below 0 more [own]."""

    adaptive: ClassVar = True
    name: Literal["planner"] = "planner"  # type: ignore[assignment]
    bias: float = 0.0  # [own]

    @property
    def label(self) -> str:
        """See `SamplerConfig.label`."""
        return self.name + f", bias {self.bias:g}" * (self.bias != 0)

    def build(self, critic: nn.Module | None = None) -> Sampler:
        """See `SamplerConfig.build`."""
        return partial(sample, bias=self.bias)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    canvas: Tensor,
    steps: int,
    generator: torch.Generator,
    process: MaskedProcess = LOG_LINEAR,
    draw: Draw = "exact",
    bias: float = 0.0,
) -> SampleOutput:
    """See `Sampler`. ``steps`` caps the passes: the last one commits everything.

    A denoiser without a planner commits at the rate that fills a canvas in ``steps`` passes, where a planner starts.
    """

    def planned(features: Tensor, log_prob: Tensor, summaries: Tensor, masked: Tensor) -> Tensor:
        logits = planned_logits(denoiser, features, summaries, masked, steps) + bias
        return draw_commits(logits, masked, uniform(generator, len(masked), masked.shape[1] + 1), denoiser.repulsion)

    return commit_by(planned, denoiser, canvas, steps, generator, process, draw, blind=True)


def planned_logits(denoiser: Denoiser, features: Tensor, summaries: Tensor, masked: Tensor, steps: int) -> Tensor:
    """(B, L) logits of committing each position of ``masked``, 0 elsewhere.

    Args:
        features, summaries: (N, H) and (N, 2) at these positions. steps: of the rate where there is no planner.
    """
    where = surroundings(masked)
    logits = denoiser.commit_logits(features, summaries, where)
    if logits is None:
        logits = base_logits(where[:, 0], steps)
    return scatter(logits, masked)
