"""Divergences between categorical distributions given as log-probabilities, safe where both are −∞.

Shapes are (..., V) → (...), in nats. A column that is −∞ in either is left out where its term is 0; where p > 0 and
q = 0 the divergence is +∞, as it should be.

Expectations and KL keep nothing for their backward pass but what they are given: all else, which is as wide as the
vocabulary, is computed again there, some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from teachers.ops.parts import mapped, reduced


def _products(p: Tensor, values: Tensor) -> Tensor:
    """p · r into ``values`` themselves; 0 where p = 0, whatever r is: torch makes 0 · ∞ = NaN."""
    return values.mul_(p).nan_to_num_(0.0, torch.inf, -torch.inf)


def _unseen(*laws: Tensor) -> Tensor:
    """0 for each row, NaN where a network has diverged, which `_products` does not show."""
    largest = torch.finfo(laws[0].dtype).max
    return sum((0 * law.detach().amax(-1).clamp(-largest, largest) for law in laws), laws[0].new_zeros(()))


class _Expectation(torch.autograd.Function):
    """Σ_v p(v) r(v)."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, values: Tensor) -> Tensor:
        def of_rows(log_p: Tensor, values: Tensor) -> Tensor:
            return _products(log_p.exp(), values.clone()).sum(-1) + _unseen(log_p, values)

        ctx.save_for_backward(log_p, values)
        return reduced(of_rows, log_p, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_p, values = ctx.saved_tensors
        to_log_p, to_values = None, None
        if ctx.needs_input_grad[0]:
            to_log_p = mapped(lambda log_p, r, g: _products(log_p.exp(), r * g[:, None]), log_p, values, *gradients)
        if ctx.needs_input_grad[1]:
            to_values = mapped(lambda log_p, g: log_p.exp().mul_(g[:, None]), log_p, *gradients)
        return to_log_p, to_values


class _Kl(torch.autograd.Function):
    """Σ_v p(v) (log p(v) − log q(v))."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        def of_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
            return _products(log_p.exp(), log_p - log_q).sum(-1) + _unseen(log_p, log_q)

        ctx.save_for_backward(log_p, log_q)
        return reduced(of_rows, log_p, log_q)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        def of_log_p(log_p: Tensor, log_q: Tensor, gradient: Tensor) -> Tensor:
            p, gradient = log_p.exp(), gradient[:, None]
            return _products(p, (log_p - log_q).mul_(gradient)).add_(p.mul_(gradient))

        log_p, log_q = ctx.saved_tensors
        to_log_p, to_log_q = None, None
        if ctx.needs_input_grad[0]:
            to_log_p = mapped(of_log_p, log_p, log_q, *gradients)
        if ctx.needs_input_grad[1]:
            to_log_q = mapped(lambda log_p, g: log_p.exp().mul_(g[:, None]).neg_(), log_p, *gradients)
        return to_log_p, to_log_q


def expectation(log_p: Tensor, values: Tensor) -> Tensor:
    """Σ_v p(v) r(v) of ``values`` r, where p(v) = 0 contributes nothing, whatever r is."""
    return _Expectation.apply(log_p, values)


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = −Σ p log p."""
    return -expectation(log_p, log_p)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p − log q)."""
    return _Kl.apply(log_p, log_q)


def jeffreys(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p‖q) + (1−β) KL(q‖p)."""
    return beta * kl(log_p, log_q) + (1 - beta) * kl(log_q, log_p)


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p‖m) + (1−β) KL(q‖m) with m = β p + (1−β) q, 0 < β < 1."""
    both = (log_p == -torch.inf) & (log_q == -torch.inf)  # logaddexp's gradient there would be NaN
    parts = log_p.masked_fill(both, 0.0) + math.log(beta), log_q.masked_fill(both, 0.0) + math.log(1 - beta)
    log_m = torch.logaddexp(*parts).masked_fill(both, -torch.inf)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p − log q, 0 where both are −∞ (the mask column)."""
    return (log_p - log_q).nan_to_num_(0.0, torch.inf, -torch.inf) + _unseen(log_p, log_q)[..., None]


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ Σ |p − q|, in [0, 1]."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def mean_squared(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Mean of (log p − log q)² over the columns that are −∞ in neither."""
    possible = (log_p > -torch.inf) & (log_q > -torch.inf)
    return log_ratio(log_p, log_q).masked_fill(~possible, 0.0).square().sum(-1) / possible.sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": kl,
    "forward_kl": lambda log_p, log_q: kl(log_q, log_p),
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
    "mean_squared": mean_squared,
}
"""How far a student (first) is from what it is to match (second); the reverse KL is KL(student‖target)."""
