"""The least KL(q ‖ p) of a product law q = a × b to the joint law p of two things that depend on each other.

A law of two symbols of T with p(i, i) = d and p(i, j) = o for i ≠ j, d ≥ o, has with J = log(d / o)

    KL(a × b ‖ p) = −H(a) − H(b) − log o − J Σ_i a_i b_i.

Since Σ a_i b_i ≤ (‖a‖² + ‖b‖²) / 2, it is at least f(a) + f(b) − log o for f(a) = −H(a) − J/2 ‖a‖², and is that at a
= b, so that its minimum is 2 min f − log o. At a minimum of f all a_i log a_i − J/2 a_i² have the same slope, and at
most one a_i is in (1/J, 1], where this is concave: two there could gain by moving mass from one to the other. Below
1/J the slope grows, so all others are equal. So a = (s, (1−s)/(T−1), …), and what is left is a minimum over s ∈ [1/T,
1]. It is near 1, a student that always writes the same symbol, where J is large, and at 1/T, all symbols alike, where
it is small: to be near q is to be near one of the modes of p, not to cover them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POINTS = 20_001
"""Of the grid for a minimum over one number, which is then right to about 1e-6 nats."""


def least_pair_nats(symbols: int, same: float, other: float) -> float:
    """min KL(a × b ‖ p), in nats.

    Args:
        symbols: T ≥ 2. same: d, the probability of a pair of equal symbols, for each. other: o, for each two others.
    """
    odds, rest = math.log(same / other), symbols - 1
    assert odds >= 0, "equal symbols are at least as probable as two others"
    # 1. 1 − s from 1 − 1/T down to e⁻⁴⁰, evenly in the logarithm
    left = (1 - 1 / symbols) * torch.exp(-torch.linspace(0, 40, POINTS, dtype=torch.float64))
    s = 1 - left
    # 2. f(a)
    negentropy = torch.xlogy(s, s) + torch.xlogy(left, left / rest)
    f = negentropy - odds / 2 * (s**2 + left**2 / rest)
    return 2 * float(f.min()) - math.log(other)


def least_table_nats(table: Tensor) -> Tensor:
    """min KL(a × b ‖ p) of tables of two by two: (…, 2, 2) probabilities → (…,) nats.

    Given b, the best a is ∝ exp Σ_j b_j log p(·, j), which leaves −H(b) − log Σ_i exp Σ_j b_j log p(i, j), a minimum
    over one number.
    """
    b = _shares().to(table)  # (P, 2)
    expected = torch.einsum("...ij,pj->...pi", table.log(), b)
    return (torch.xlogy(b, b).sum(-1) - expected.logsumexp(-1)).amin(-1)


def _shares() -> Tensor:
    """(P, 2) laws of two symbols, even in the logit."""
    logit = torch.linspace(-25, 25, POINTS, dtype=torch.float64)
    return torch.stack([torch.sigmoid(logit), torch.sigmoid(-logit)], 1)
