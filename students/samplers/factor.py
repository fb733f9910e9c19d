"""Commit as many tokens as are certain enough together (Fast-dLLM, 2505.22618, section 3.3).

With c₁ ≥ c₂ ≥ … the confidences of a row's masked tokens, the n most confident ones are committed for the largest n
with (n + 1)(1 − cₙ) ≤ f and all before it so too, but always one: then greedy parallel decoding and greedy decoding one
by one agree, if f < 1 [paper, theorem 1]. The more tokens at once, the surer each of them must be.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.drawing import Summary
from students.samplers.score import ranks, score_summary
from students.samplers.stepwise import Prediction, StepwiseSampler


class Factor(StepwiseSampler):
    """``factor`` is f. Confidence is the largest probability of a position, which does not know what was drawn.

    The released code commits all but one as all; that is not inherited.
    """

    adaptive: ClassVar[bool] = True
    name: Literal["factor"] = "factor"
    factor: float = Field(default=1.0, gt=0)  # [code]

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        return super().label.replace(self.name, f"{self.name} {self.factor:g}", 1)

    @property
    def summary(self) -> Summary | None:
        """See `Sampler.summary`."""
        return score_summary("largest", tempered=False)

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        candidates, log_confidence = prediction.candidates, prediction.summaries[:, 0]
        rank = ranks(log_confidence, candidates)
        # 1. whether a position would be certain enough as the last one, were the more confident ones committed with it
        doubt = torch.ones(candidates.shape, dtype=log_confidence.dtype, device=candidates.device)
        doubt = doubt.masked_scatter(candidates, -torch.expm1(log_confidence))
        fits = (rank + 2) * doubt <= self.factor
        # 2. up to the first that is not
        return candidates & prefix(fits, rank)


def prefix(fits: Tensor, rank: Tensor) -> Tensor:
    """The positions (R, L) before the first one, by ``rank`` (R, L), that does not fit; and always that of rank 0."""
    place = torch.zeros_like(rank).scatter_(1, rank, torch.arange(rank.shape[1], device=rank.device).expand_as(rank))
    unbroken = fits.gather(1, place).int().cumprod(1).bool()
    return unbroken.gather(1, rank) | (rank == 0)
