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

from students.drawing import Summary
from students.samplers.score import Score, ranks, score_summary, scores
from students.samplers.stepwise import Prediction, StepwiseSampler
from students.samplers.timetable import Timetable
from students.samplers.top_k import counts

Confidence = Literal["largest", "drawn"]


class Threshold(StepwiseSampler):
    """When a token is certain enough.

    Attributes:
        threshold: a probability.
        strict: whether confidence must exceed it, as in SDAR, LLaDA2 and Fast-dLLM v2; else reaching it is enough.
        confidence: "largest" probability of the position, or that of the token "drawn" there.
        tempered: whether under the law that tokens are drawn from, after ``temperature``, ``top_k`` and ``top_p``, as
            SDAR does; else under the denoiser's own.
        timetable: every pass commits at least as many as this says, as SDAR and LLaDA2.0 do ("sdar"); None: at least 1.
    """

    adaptive: ClassVar[bool] = True
    name: Literal["threshold"] = "threshold"
    threshold: float = Field(default=0.9, gt=0, le=1)  # [paper]
    strict: bool = False  # [code]
    confidence: Confidence = "largest"  # [own]
    tempered: bool = False  # [own]
    timetable: Timetable | None = None  # [paper]

    @property
    def score(self) -> Score:
        """What positions are ranked by."""
        return "largest" if self.confidence == "largest" else "confidence"

    @property
    def blind(self) -> bool:
        """Unless it looks at what was drawn."""
        return self.confidence == "largest"

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        drawn = ", of the drawn token" * (self.confidence == "drawn")
        least = "" if self.timetable is None else f", at least {self.timetable}'s timetable"
        return super().label.replace(self.name, f"{self.name} {self.threshold:g}{drawn}", 1) + least

    @property
    def summary(self) -> Summary | None:
        """See `Sampler.summary`."""
        return score_summary(self.score, self.tempered)

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        score = scores(self.score, self.tempered, prediction)
        least = 1 if self.timetable is None else counts(self.timetable, self.block_tokens, prediction)
        return confident(score, prediction.candidates, self.threshold, least, self.strict)


def confident(
    log_confidence: Tensor, candidates: Tensor, threshold: float, least: int | Tensor = 1, strict: bool = False
) -> Tensor:
    """The positions to commit: (B, L) bool.

    Args:
        log_confidence: (N,) at the positions of ``candidates`` (B, L), in row-major order.
        threshold: a probability. strict: whether it must be exceeded.
        least: how many are committed in any case, the most confident ones, (B,) or the same for all rows.
    """
    p = torch.zeros(candidates.shape, dtype=log_confidence.dtype, device=candidates.device)
    p = p.masked_scatter(candidates, log_confidence.exp())
    sure = p > threshold if strict else p >= threshold
    least = torch.as_tensor(least, device=candidates.device).view(-1, 1)
    return candidates & (sure | (ranks(log_confidence, candidates) < least))
