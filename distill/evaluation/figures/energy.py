"""Energy distance (Székely & Rizzo 2013): how far apart the laws of two sets of vectors are; named by 2606.08417.

D² = 2 E|X − Y| − E|X − X'| − E|Y − Y'|, which is 0 for equal laws only. Estimated without bias, by a U-statistic, it
may come out a little below 0. What it reaches for equal laws by chance is found by dealing the vectors out anew.
"""

from __future__ import annotations

import numpy as np
import torch

DEALS = 200  # [own]


def energy_distance(vectors: np.ndarray, real: np.ndarray) -> float:
    """D² of (N, D) and (M, D), in the vectors' own unit, at least 2 of each."""
    is_real = np.repeat([0.0, 1.0], [len(vectors), len(real)])
    return float(_statistics(_distances(vectors, real), is_real[None])[0])


def energy_null(vectors: np.ndarray, real: np.ndarray, seed: int, level: float = 0.95) -> float:
    """What D² stays below with probability ``level`` if both are of one law: a permutation test's critical value."""
    is_real = np.repeat([0.0, 1.0], [len(vectors), len(real)])
    dealt = np.random.default_rng(seed).permuted(np.tile(is_real, (DEALS, 1)), axis=1)
    return float(np.quantile(_statistics(_distances(vectors, real), dealt), level))


def _distances(vectors: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(N + M, N + M) between all of them; exactly 0 between equal ones."""
    pooled = torch.from_numpy(np.concatenate([vectors, real]).astype(np.float64))
    return torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _statistics(distances: np.ndarray, is_real: np.ndarray) -> np.ndarray:
    """D² of P ways (P, N + M) to tell the two sets apart: (P,)."""
    ours = 1 - is_real
    across = ((ours @ distances) * is_real).sum(1)
    within = [((part @ distances) * part).sum(1) for part in (ours, is_real)]
    n, m = ours.sum(1), is_real.sum(1)
    return 2 * across / (n * m) - within[0] / (n * (n - 1)) - within[1] / (m * (m - 1))
