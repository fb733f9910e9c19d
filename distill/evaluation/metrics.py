"""Figures of a set of samples: pure functions of arrays, nats throughout."""

from __future__ import annotations

import numpy as np


def perplexity(nats: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean negative log-likelihood over all scored tokens.

    Args:
        nats: (N,) summed negative log-likelihood of each sample.
        tokens: (N,) scored tokens of each sample.
    """
    return float(np.exp(nats.sum() / tokens.sum()))


def nats_interval(
    nats: np.ndarray, tokens: np.ndarray, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of nats a token, resampling whole samples (tokens of one text are not independent).

    Args:
        nats: (N,) a sum over each sample. tokens: (N,) of how many tokens.
        resamples: bootstrap draws.
        level: nominal coverage.
    """
    chosen = np.random.default_rng(seed).integers(len(nats), size=(resamples, len(nats)))
    draws = nats[chosen].sum(1) / tokens[chosen].sum(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def perplexity_interval(
    nats: np.ndarray, tokens: np.ndarray, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """exp of `nats_interval`, whose arguments these are: the interval of `perplexity`."""
    low, high = np.exp(nats_interval(nats, tokens, resamples, seed, level))
    return float(low), float(high)


def unigram_entropy(rows: np.ndarray, written: np.ndarray | None = None) -> float:
    """Mean over samples of the entropy of each sample's own token counts, in nats.

    Args:
        rows: (N, L). written: (N, L) bool, which tokens count; None: all.
    """
    texts = rows if written is None else [row[counts] for row, counts in zip(rows, written, strict=True)]
    return float(np.mean([_entropy(np.unique(text, return_counts=True)[1]) for text in texts]))


def bigram_counts(rows: np.ndarray, written: np.ndarray | None = None) -> np.ndarray:
    """How often each distinct bigram occurs, all samples pooled, none across two samples.

    Args:
        rows: (N, L). written: (N, L) bool, which tokens count; None: all.
    """
    width = int(rows.max()) + 1
    pairs = rows[:, :-1].astype(np.int64) * width + rows[:, 1:]
    if written is not None:
        pairs = pairs[written[:, :-1] & written[:, 1:]]
    return np.unique(pairs, return_counts=True)[1]


def bigram_entropy(rows: np.ndarray, written: np.ndarray | None = None) -> float:
    """Entropy of the pooled bigrams in nats; grows with the number of tokens, so compare equal numbers only."""
    return _entropy(bigram_counts(rows, written))


def distinct_2(rows: np.ndarray, written: np.ndarray | None = None) -> float:
    """Distinct bigrams over all bigrams, pooled; falls with the number of tokens, so compare equal numbers only.

    Texts of one token have no bigram, of which then 0 are distinct.
    """
    counts = bigram_counts(rows, written)
    return float(len(counts) / max(1, counts.sum()))


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())
