"""Commit what is certain enough (Fast-dLLM, 2505.22618): every masked token whose confidence reaches a threshold.

Each pass draws every masked token and commits those positions, always at least the most confident one. Confidence is
by default the largest probability at the position, which does not know what was drawn: with an exact denoiser, one
position at a time, the samples keep the exact law. The published rule takes the most probable token and so its
probability (``draw: greedy``); with exact draws "drawn" is its analogue, which favours probable tokens and so sharpens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.samplers.sampler import Prediction, StepwiseSampler

Confidence = Literal["largest", "drawn"]


class Threshold(StepwiseSampler):
    """When a token is certain enough.

    Attributes:
        threshold: a probability.
        confidence: "largest" probability of the position, or that of the token "drawn" there.
    """

    adaptive: ClassVar[bool] = True
    summarises: ClassVar[bool] = True
    name: Literal["threshold"] = "threshold"
    threshold: float = Field(default=0.9, gt=0, le=1)  # [paper]
    confidence: Confidence = "largest"  # [own]

    @property
    def blind(self) -> bool:
        """Unless it looks at what was drawn."""
        return self.confidence == "largest"

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        drawn = ", of the drawn token" * (self.confidence == "drawn")
        return super().label.replace(self.name, f"{self.name} {self.threshold:g}{drawn}")

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        log_confidence = prediction.confidence if self.confidence == "drawn" else prediction.summaries[:, 1]
        return confident(log_confidence, prediction.canvas.open, self.threshold)


def confident(log_confidence: Tensor, open_: Tensor, threshold: float) -> Tensor:
    """The positions to commit: (B, L) bool, at least one in a row that has open ones.

    Args:
        log_confidence: (N,) at the positions of ``open_`` (B, L), in row-major order. threshold: a probability.
    """
    scores = torch.full(open_.shape, -torch.inf, dtype=log_confidence.dtype, device=open_.device)
    scores = scores.masked_scatter(open_, log_confidence)
    place = torch.arange(open_.shape[1], device=open_.device)
    return open_ & ((scores.exp() >= threshold) | (place == scores.argmax(1, keepdim=True)))
