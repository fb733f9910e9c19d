"""Figures of answered questions: pure functions of scores from 0 to 1, and of points on a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
Z = NormalDist().inv_cdf(0.975)
"""Of a 95% interval."""
PENALTY = 3.0
"""α of `accuracy_under_parallelism` [paper]."""
TOLERANCE = 5.0
"""Points of accuracy below a curve's first one, under which parallelism counts for nothing [paper]."""


def accuracy_interval(scores: np.ndarray) -> Interval:
    """Wilson's 95% score interval of the mean of (N,) scores.

    Scores between 0 and 1 vary less than right and wrong do, so that for those it is wider than it need be.
    """
    n, p = len(scores), float(scores.mean())
    centre, spread = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def difference_interval(one: np.ndarray, other: np.ndarray) -> Interval:
    """A 95% interval of mean(one − other), (N,) scores each of the same N questions.

    Bonett and Price's adjusted Wald interval for paired proportions (2012): a question is added on which one is
    right and the other wrong, and one the other way round, so that no interval is empty where all answers agree. Scores
    between 0 and 1 make it wider than it need be.
    """
    n, difference = len(one) + 2, one - other
    gained = (float(difference.clip(min=0).sum()) + 1) / n
    lost = (float(-difference.clip(max=0).sum()) + 1) / n
    spread = Z * math.sqrt((gained + lost - (gained - lost) ** 2) / n)
    return max(-1.0, gained - lost - spread), min(1.0, gained - lost + spread)


def accuracy_under_parallelism(points: Sequence[tuple[float, float]], best: float) -> float:
    """AUP of a curve (d3LLM, Qian et al. 2601.07568): the area under accuracy against tokens a forward pass, weighted.

    AUP = ρ₁y₁ + ½ Σ_{i≥2} (ρᵢ − ρᵢ₋₁)(yᵢW(yᵢ) + yᵢ₋₁W(yᵢ₋₁)), over the points with yᵢ ≥ y₁ − `TOLERANCE` in the order
    of ρ, and W(y) = min(exp(−`PENALTY` · (1 − y/y_max)), 1).

    >>> round(accuracy_under_parallelism([(1.0, 74.02), (9.08, 73.1)], 74.98), 1)
    635.7

    Args:
        points: (ρ, y), tokens a forward pass and accuracy in percent.
        best: y_max, the highest accuracy of all that are compared.
    """
    points = sorted(points)
    points = [(parallelism, y) for parallelism, y in points if y >= points[0][1] - TOLERANCE]
    weighted = [(rho, y * min(math.exp(-PENALTY * (1 - y / best)), 1) if best else 0.0) for rho, y in points]
    area = sum((b - a) * (y + x) / 2 for (a, x), (b, y) in pairwise(weighted))
    return points[0][0] * points[0][1] + area
