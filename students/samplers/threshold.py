"""Commit what is certain enough (Fast-dLLM, 2505.22618): every masked token whose confidence reaches a threshold.

Each pass draws every masked token exactly and commits those positions, always at least the most confident one.
Confidence is by default the largest probability at the position, which does not know what was drawn: with an exact
denoiser, one position at a time, the samples keep the exact law. The published rule takes the most probable token and
so its probability; with exact draws "drawn" is its analogue, which favours probable tokens and so sharpens.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from students.samplers.sampler import (
    LOG_LINEAR,
    Draw,
    SampleOutput,
    Sampler,
    SamplerConfig,
    commit_by,
)
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess

Confidence = Literal["largest", "drawn"]


class ThresholdConfig(SamplerConfig):
    """When a token is certain enough.

    Attributes:
        threshold: a probability.
        confidence: "largest" probability of the position, or that of the token "drawn" there.
    """

    adaptive: ClassVar = True
    name: Literal["threshold"] = "threshold"  # type: ignore[assignment]
    threshold: float = Field(0.9, gt=0, le=1)  # [paper]
    confidence: Confidence = "largest"  # [own]

    @property
    def label(self) -> str:
        """See `SamplerConfig.label`."""
        return f"{self.name} {self.threshold:g}" + ", of the drawn token" * (self.confidence == "drawn")

    def build(self, critic: nn.Module | None = None) -> Sampler:
        """See `SamplerConfig.build`."""
        return partial(sample, threshold=self.threshold, confidence=self.confidence)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    canvas: Tensor,
    steps: int,
    generator: torch.Generator,
    process: MaskedProcess = LOG_LINEAR,
    draw: Draw = "exact",
    threshold: float = 0.9,
    confidence: Confidence = "largest",
) -> SampleOutput:
    """See `Sampler`. ``steps`` caps the passes: the last one commits everything."""

    def certain(features: Tensor, log_prob: Tensor, summaries: Tensor, masked: Tensor) -> Tensor:
        return confident(log_prob if confidence == "drawn" else summaries[:, 1], masked, threshold)

    return commit_by(certain, denoiser, canvas, steps, generator, process, draw, blind=confidence == "largest")


def confident(log_confidence: Tensor, masked: Tensor, threshold: float) -> Tensor:
    """The positions to commit: (B, L) bool, at least one in a row that has masks.

    Args:
        log_confidence: (N,) at the positions of ``masked`` (B, L), in row-major order. threshold: a probability.
    """
    scores = torch.full(masked.shape, -torch.inf, dtype=log_confidence.dtype, device=masked.device)
    scores = scores.masked_scatter(masked, log_confidence)
    place = torch.arange(masked.shape[1], device=masked.device)
    return masked & ((scores.exp() >= threshold) | (place == scores.argmax(1, keepdim=True)))
