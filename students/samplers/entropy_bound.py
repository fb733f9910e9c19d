"""Commit as many tokens as the entropy allows (EB-Sampler, Ben-Hamu et al. 2505.24857).

What is lost by drawing a set S at once is at most Σ_{i∈S} H_i − max_{i∈S} H_i nats: the joint entropy is no less than
the largest. Positions are taken in the order of how surely they are predicted, as many as keep this bound within γ, and
always one.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.drawing import Summary
from students.planner import summary
from students.samplers.factor import prefix
from students.samplers.score import ranks, score_summary
from students.samplers.stepwise import Prediction, StepwiseSampler


class EntropyBound(StepwiseSampler):
    """How much may be lost.

    Attributes:
        gamma: γ, in nats.
        order: "entropy", the least first; or by the "largest" probability, as RND1 does, or the "margin".
        tempered: whether all of it is of the law that tokens are drawn from, as in RND1; else of the denoiser's own.
    """

    adaptive: ClassVar[bool] = True
    name: Literal["entropy_bound"] = "entropy_bound"
    gamma: float = Field(default=0.1, ge=0)  # [paper]
    order: Literal["entropy", "largest", "margin"] = "entropy"  # [paper]
    tempered: bool = False

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        order = f", {self.order} order" * (self.order != "entropy")
        return super().label.replace(self.name, f"{self.name} {self.gamma:g}", 1) + order

    @property
    def summary(self) -> Summary:
        """The score and the entropy; see `Sampler.summary`."""
        score = score_summary(self.order, self.tempered)
        assert score is not None

        def read(own: Tensor, drawn_from: Tensor) -> Tensor:
            entropy = summary(drawn_from if self.tempered else own)[:, :1]
            return torch.cat([score(own, drawn_from), entropy], -1)

        return read

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        candidates, (score, entropy) = prediction.candidates, prediction.summaries.unbind(1)
        rank = ranks(score, candidates)
        # 1. entropies in that order, (R, L)
        spread = torch.zeros(candidates.shape, dtype=entropy.dtype, device=candidates.device)
        ordered = torch.zeros_like(spread).scatter_(1, rank, spread.masked_scatter(candidates, entropy))
        # 2. the bound of what each position and those before it lose together
        lost = ordered.cumsum(1) - ordered.cummax(1).values
        return candidates & prefix((lost <= self.gamma).gather(1, rank), rank)
