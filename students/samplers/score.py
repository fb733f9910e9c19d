"""What a rule ranks open positions by: the higher the score, the sooner a position is committed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from students.drawing import Summary
from students.planner import summary
from students.samplers.stepwise import Prediction
from teachers.randomness import uniform_at

Score = Literal["confidence", "largest", "margin", "entropy", "random", "sequential"]
"""Log-probability of the token that was drawn (LLaDA), or the largest one of the position; the largest probability less
the next one, or minus the entropy (Dream); nothing but chance; or from left to right (SDAR)."""


def score_summary(score: Score, tempered: bool) -> Summary | None:
    """What a score reads of a position's law beside the drawn token: (n, 1); None where it reads nothing.

    Args:
        tempered: whether of the law that tokens are drawn from; else of the denoiser's own.
    """
    if score not in ("largest", "margin", "entropy"):
        return None

    def read(own: Tensor, drawn_from: Tensor) -> Tensor:
        law = drawn_from if tempered else own
        if score == "largest":
            return law.amax(-1, keepdim=True)
        if score == "entropy":
            return -summary(law)[:, :1]
        best = law.topk(2, -1).values.exp()
        return best[:, :1] - best[:, 1:]

    return read


def scores(score: Score, tempered: bool, prediction: Prediction) -> Tensor:
    """(N,) of the positions of `Prediction.candidates`, in row-major order. Arguments as `score_summary`."""
    if score == "confidence":
        return prediction.log_prob if tempered else prediction.confidence
    if score == "random":
        candidates, real = prediction.candidates, prediction.canvas.real
        return uniform_at(prediction.randomness, candidates, int(candidates.sum()), real)
    if score == "sequential":
        return -prediction.candidates.nonzero()[:, 1].double()
    return prediction.summaries[:, 0]


def ranks(score: Tensor, candidates: Tensor) -> Tensor:
    """The place of each candidate in its row, 0 for the highest score: (R, L); the others come after them.

    Args:
        score: (N,) at the True positions of ``candidates`` (R, L), in row-major order. Ties go to the left.
    """
    never = torch.full(candidates.shape, -torch.inf, dtype=score.dtype, device=candidates.device)
    ordered = never.masked_scatter(candidates, score).argsort(dim=1, descending=True, stable=True)
    return ordered.argsort(dim=1)
