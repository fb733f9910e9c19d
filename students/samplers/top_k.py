"""Top-k confidence (LLaDA, Nie et al. 2502.09992): draw every masked token, commit the most probable ones.

Each step commits as many of a row's open positions as a timetable says (students/samplers/timetable.py), by default
⌊N/steps⌋, one more in the first N mod steps of them, so that a row takes exactly min(steps, N) passes. Other orders are
Dream's, RND1's and SDAR's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from students.drawing import Summary
from students.samplers.score import Score, ranks, score_summary, scores
from students.samplers.stepwise import Prediction, StepwiseSampler
from students.samplers.timetable import Timetable, tokens_per_pass


class TopK(StepwiseSampler):
    """The published rule takes each position's most probable token: ``draw: greedy``.

    Attributes:
        order: what positions are ranked by.
        tempered: whether by the law that tokens are drawn from, after ``temperature``, ``top_k`` and ``top_p``, as
            Dream, SDAR and RND1 do; else by the denoiser's own, as LLaDA does.
        timetable: how many tokens each pass commits.
    """

    name: Literal["top_k"] = "top_k"
    order: Score = "confidence"  # [paper]
    tempered: bool = False  # [code]
    timetable: Timetable = "llada"  # [paper]

    @property
    def blind(self) -> bool:
        """Unless it prefers positions whose drawn tokens are probable."""
        return self.order != "confidence"

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        order = f", {self.order} order" * (self.order != "confidence")
        return super().label + order + f", {self.timetable}'s timetable" * (self.timetable != "llada")

    @property
    def summary(self) -> Summary | None:
        """See `Sampler.summary`."""
        return score_summary(self.order, self.tempered)

    def scores(self, prediction: Prediction) -> Tensor:
        """(N,) what candidates are ranked by."""
        return scores(self.order, self.tempered, prediction)

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        count = counts(self.timetable, self.block_tokens, prediction)
        rank = ranks(self.scores(prediction), prediction.candidates)
        return prediction.candidates & (rank < count[:, None])


def counts(timetable: Timetable, block_length: int | None, prediction: Prediction) -> Tensor:
    """How many tokens a timetable commits in this pass: (R,), at least 1."""
    total = prediction.to_write
    if timetable == "sdar" and block_length is not None:
        total = torch.full_like(total, block_length)
    numbers = zip(total.tolist(), prediction.steps.tolist(), prediction.number.tolist(), strict=True)
    each = [(tokens_per_pass(timetable, n, steps), number) for n, steps, number in numbers]
    # a block that is open in part only is full before the timetable is through
    return torch.tensor([c[min(number, len(c) - 1)] for c, number in each], dtype=torch.int64, device=total.device)
