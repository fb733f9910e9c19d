"""MAUVE (Pillutla et al. 2102.01454): how near the law of texts is to that of real texts, in a featuriser's states.

The states of both are put into clusters. With p and q the shares of the clusters among texts and real texts and
r = λp + (1 − λ)q, MAUVE is the area under the curve (exp(−c·KL(q ‖ r)), exp(−c·KL(p ‖ r))) over λ. It is 1 where the
shares are equal. For sets that share no cluster it is (c!)²/(2c)!, which is 0.004.
"""

from __future__ import annotations

import numpy as np

SCALING = 5.0  # [paper] c
WEIGHTS = 25  # [code] λ, evenly from 1e-6 to 1 − 1e-6
EXPLAINED = 0.9  # [code] of the variance, by the principal components that are kept
TEXTS_PER_CLUSTER = 10  # [code]
STARTS = 5  # [code] of k-means, of which the best is kept
ITERATIONS = 500  # [code] of k-means, at most


def mauve(states: np.ndarray, real: np.ndarray, seed: int, clusters: int | None = None) -> float:
    """MAUVE of texts' states (N, D) against real ones (M, D), in [0, 1].

    Args:
        clusters: None for `cluster_count`.
    """
    count = cluster_count(len(states), len(real)) if clusters is None else clusters
    labels = quantised(np.concatenate([states, real]), count, seed)
    texts, reals = (np.bincount(part, minlength=count) / len(part) for part in np.split(labels, [len(states)]))
    return frontier_area(texts, reals)


def cluster_count(texts: int, real: int) -> int:
    """A cluster for every `TEXTS_PER_CLUSTER` texts of the smaller set, at least 2 [code]."""
    return max(2, round(min(texts, real) / TEXTS_PER_CLUSTER))


def quantised(states: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Which cluster each state is in, (N,): of unit length, on its main principal components, by k-means."""
    unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    explained = np.cumsum(deviations**2) / max(float((deviations**2).sum()), 1e-30)
    kept = int(np.searchsorted(explained, EXPLAINED)) + 1
    return k_means(centred @ axes[:kept].T, clusters, np.random.default_rng(seed))


def k_means(points: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """Lloyd's algorithm from the best of `STARTS` starts, chosen as k-means++ does: labels (N,)."""
    best, least = np.zeros(len(points), np.int64), np.inf
    for _ in range(STARTS):
        labels, loss = _lloyd(points, _spread(points, clusters, generator))
        if loss < least:
            best, least = labels, loss
    return best


def _spread(points: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """Centres (K, D), each a point drawn with a chance that grows with its distance from those before."""
    centres = [points[generator.integers(len(points))]]
    nearest = _squares(points, centres[0][None])[:, 0]
    for _ in range(clusters - 1):
        chances = nearest if nearest.sum() > 0 else np.ones(len(points))
        centres.append(points[generator.choice(len(points), p=chances / chances.sum())])
        nearest = np.minimum(nearest, _squares(points, centres[-1][None])[:, 0])
    return np.stack(centres)


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    labels = np.full(len(points), -1)
    for _ in range(ITERATIONS):
        squares = _squares(points, centres)
        nearest = squares.argmin(1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        sizes = np.bincount(labels, minlength=len(centres))[:, None]
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
    return labels, float(_squares(points, centres)[np.arange(len(points)), labels].sum())


def _squares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, K) squared distances."""
    lengths = (points**2).sum(1)[:, None] + (centres**2).sum(1)
    return np.maximum(lengths - 2 * points @ centres.T, 0)


def frontier_area(texts: np.ndarray, real: np.ndarray) -> float:
    """The area under the curve of two laws (K,) over the same clusters."""
    # 1. the two divergences at every mixture, and the ends of the curve
    curve = [(0.0, np.inf)]
    for weight in np.linspace(1e-6, 1 - 1e-6, WEIGHTS):
        mixture = weight * texts + (1 - weight) * real
        curve.append((_divergence(real, mixture), _divergence(texts, mixture)))
    x, y = np.exp(-SCALING * np.array([*curve, (np.inf, 0.0)])).T
    # 2. the mean of the areas over either axis
    return float((_area(x, y) + _area(y, x)) / 2)


def _divergence(law: np.ndarray, mixture: np.ndarray) -> float:
    where = law > 0
    return float((law[where] * np.log(law[where] / mixture[where])).sum())


def _area(x: np.ndarray, y: np.ndarray) -> float:
    order = np.lexsort((-y, x))  # y falls along the curve, also where x stands still
    return float(np.trapezoid(y[order], x[order]))
