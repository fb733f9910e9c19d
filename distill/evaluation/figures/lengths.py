"""How long texts are, and how far that is from real texts."""

from __future__ import annotations

import numpy as np

LEVELS = (0.05, 0.5, 0.95)


def length_quantiles(lengths: np.ndarray) -> tuple[float, float, float]:
    """The lengths (N,) that 5, 50 and 95% of the texts do not exceed."""
    low, middle, high = np.quantile(lengths, LEVELS)
    return float(low), float(middle), float(high)


def length_distance(lengths: np.ndarray, real: np.ndarray) -> float:
    """The Wasserstein distance of two sets of lengths, (N,) and (M,): by how many tokens a text's length is off.

    The area between the two shares of texts that are at most so long.
    """
    points = np.sort(np.concatenate([lengths, real]))
    ours, theirs = (np.searchsorted(np.sort(part), points[:-1], "right") / len(part) for part in (lengths, real))
    return float((np.abs(ours - theirs) * np.diff(points)).sum())
