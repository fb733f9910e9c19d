"""What follows the end of an answer on its canvas, and how little of a loss that is.

A canvas has room for the longest answer, and what a shorter one leaves is filled with end-of-text tokens: its *tail*.
The student learns from it where to end and what to write behind. But one token says as much of that as a hundred, which
would drown the answer. So every position of a text has a weight, a function of that text alone: of data, or of what the
student wrote itself. Weights have mean 1 over what a row has open, so that all means and counts stay what they are, and
each row counts as much as it would without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.positions import at


@dataclass(frozen=True)
class Tail:
    """How much the tails of a run's rows count.

    Attributes:
        share: of what the answer counts, its end-of-text token included, all that follows counts at most so much
            together. None: rows have no tails, as packed text, and all tokens count alike.
        ends: the tokens that end a text, as of `teachers.denoiser.end_ids`; where there is none, nothing has a tail.
    """

    share: float | None = None
    ends: tuple[int, ...] = ()

    def weights(self, text: Tensor, open_: Tensor) -> Tensor | None:
        """`tail_weights` of rows; None where all tokens count alike."""
        if self.share is None or not self.ends:
            return None
        return tail_weights(text, open_, self.ends, self.share)


def tail_weights(text: Tensor, open_: Tensor, ends: Sequence[int], share: float) -> Tensor:
    """What each position of a text counts: (B, L) float32, of mean 1 over a row's open positions, 0 elsewhere.

    Positions up to the first open end-of-text token count alike, those after it at most as much as these, and together
    at most ``share`` times as much as these together.

    Args:
        text: (…, L) tokens. open_: (…, L) bool, what of them was to be written. ends: the tokens that end a text.

    Example:
        An answer of 2 tokens, its end, and a tail of 6, with ``share`` ½: weights 1, 1, 1 and ¼ six times, of sum
        4½, and twice that when their mean is 1.
    """
    end = open_ & torch.isin(text, torch.tensor(ends, device=text.device))
    # 1. the tail: what has an end before it
    tail = open_ & (end.cumsum(-1) > end.long())
    answer = open_ & ~tail
    # 2. a token of it against one of the answer
    size = tail.sum(-1, keepdim=True).clamp(min=1)
    each = (share * answer.sum(-1, keepdim=True) / size).clamp(max=1)
    return balanced(torch.where(tail, each, answer.float()), open_)


def balanced(weights: Tensor, where: Tensor) -> Tensor:
    """The weights (…, L) times what makes their mean over each row's ``where`` 1; 0 elsewhere."""
    weights = weights * where
    total = weights.sum(-1, keepdim=True)
    return weights * (where.sum(-1, keepdim=True) / torch.where(total > 0, total, 1))


def weighted(values: Tensor, weights: Tensor | None, where: Tensor | None = None) -> Tensor:
    """Values times what their positions count; as they are where all count alike.

    Args:
        values: (B, L), or (N,) at the True positions of ``where`` (B, L). weights: (B, L) or None.
    """
    if weights is None:
        return values
    return values * (weights if where is None else at(weights, where)).to(values)
