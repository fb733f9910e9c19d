"""Figures of a set of samples: pure functions of arrays, nats throughout."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

AT_ONCE = 2**22  # resampled counts: 32 MiB


def perplexity(nats: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean negative log-likelihood over all scored tokens.

    Args:
        nats: (N,) summed negative log-likelihood of each sample.
        tokens: (N,) scored tokens of each sample.
    """
    return float(np.exp(nats.sum() / tokens.sum()))


def resamples(count: int, number: int, seed: int) -> np.ndarray:
    """How often each of N texts is in each of R bootstrap resamples: (1 + R, N), the first row being all of them once.

    Whole texts are drawn, since the tokens of one are not independent.
    """
    chosen = np.random.default_rng(seed).integers(count, size=(number, count))
    flat = chosen + count * np.arange(number)[:, None]
    often = np.bincount(flat.ravel(), minlength=number * count).reshape(number, count)
    return np.concatenate([np.ones((1, count)), often])


def nats_a_token(nats: np.ndarray, tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(S,) nats a token of all texts together, each as often as its weight says.

    Args:
        nats: (N,) a sum over each sample. tokens: (N,) of how many tokens. weights: (S, N), see `resamples`.
    """
    return weights @ nats / (weights @ tokens)


def quantiles(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle ``level`` of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def unigram_entropy(rows: np.ndarray, written: np.ndarray | None = None) -> float:
    """Mean over samples of the entropy of each sample's own token counts, in nats.

    Args:
        rows: (N, L). written: (N, L) bool, which tokens count; None: all.
    """
    return float(unigram_entropies(rows, written).mean())


def unigram_entropies(rows: np.ndarray, written: np.ndarray | None = None) -> np.ndarray:
    """(N,) the entropy of each sample's own token counts, in nats. Arguments as of `unigram_entropy`."""
    texts = rows if written is None else [row[counts] for row, counts in zip(rows, written, strict=True)]
    return np.array([_entropy(np.unique(text, return_counts=True)[1]) for text in texts])


class Bigrams(NamedTuple):
    """How often each distinct bigram occurs in each of N samples; M counts, those that are not 0, ordered by bigram.

    Attributes:
        samples: (M,) whose. kinds: (M,) of which bigram, numbered from 0. counts: (M,).
    """

    samples: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray


def sample_bigrams(rows: np.ndarray, written: np.ndarray | None = None) -> Bigrams:
    """The bigrams of each sample. Arguments as of `bigram_counts`."""
    pairs = _pairs(rows)
    owner = np.broadcast_to(np.arange(len(rows))[:, None], pairs.shape)
    inside = np.ones(pairs.shape, bool) if written is None else written[:, :-1] & written[:, 1:]
    _, kinds = np.unique(pairs[inside], return_inverse=True)
    both, counts = np.unique(kinds * len(rows) + owner[inside], return_counts=True)
    return Bigrams(both % len(rows), both // len(rows), counts)


def bigram_entropies(bigrams: Bigrams, weights: np.ndarray) -> np.ndarray:
    """Entropy of the pooled bigrams, each sample's as often as its weight says, in nats.

    Args:
        weights: (S, N), whole numbers.

    Returns:
        (S,); 0 where there is no bigram.
    """
    if len(bigrams.kinds) == 0:
        return np.zeros(len(weights))
    starts = np.flatnonzero(np.diff(bigrams.kinds, prepend=-1))
    size, out = max(1, AT_ONCE // len(bigrams.kinds)), []
    for first in range(0, len(weights), size):
        # 1. (S', M) counts of each bigram in each sample, (S', D) over all samples
        often = weights[first : first + size, bigrams.samples] * bigrams.counts
        pooled = np.add.reduceat(often, starts, axis=1)
        # 2. Σ −p ln p = ln n − Σ c ln c / n
        total = np.maximum(pooled.sum(1), 1)
        out.append(np.log(total) - _count_log_count(pooled).sum(1) / total)
    return np.concatenate(out)


def bigram_counts(rows: np.ndarray, written: np.ndarray | None = None) -> np.ndarray:
    """How often each distinct bigram occurs, all samples pooled, none across two samples.

    Args:
        rows: (N, L). written: (N, L) bool, which tokens count; None: all.
    """
    pairs = _pairs(rows)
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


def _pairs(rows: np.ndarray) -> np.ndarray:
    """(N, L−1) a number for each bigram."""
    return rows[:, :-1].astype(np.int64) * (int(rows.max()) + 1) + rows[:, 1:]


def _entropy(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Normal interval of the mean of independent values (N,); the value itself where there is one alone."""
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return _around(float(values.mean()), error, level)


def jackknife_interval(value: float, without: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Normal interval of a figure of pooled samples, by the jackknife (Quenouille 1956, Tukey 1958).

    Args:
        value: of all N samples. without: (N,) of all but each of them.
    """
    count = len(without)
    error = ((count - 1) / count * float(np.square(without - without.mean()).sum())) ** 0.5
    return _around(value, error, level)


def _around(value: float, error: float, level: float) -> tuple[float, float]:
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return value - half, value + half


def bigrams_without_each(rows: np.ndarray, written: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`bigram_entropy` and `distinct_2` of all samples but each: (N,) and (N,). Arguments as of these."""
    # 1. every bigram by its number, how often it occurs in all samples, and what these add to the entropy
    inside = np.ones(rows[:, 1:].shape, bool) if written is None else written[:, :-1] & written[:, 1:]
    pairs = _pairs(rows)
    _, kinds, counts = np.unique(pairs[inside], return_inverse=True, return_counts=True)
    owners = np.split(kinds, np.cumsum(inside.sum(1))[:-1])
    total, weighed = len(kinds), _count_log_count(counts).sum()
    entropies, shares = np.zeros(len(rows)), np.zeros(len(rows))
    for number, own in enumerate(owners):
        # 2. the same without a sample's own: only the counts of its own bigrams are others
        mine, often = np.unique(own, return_counts=True)
        left, rest = max(1, total - len(own)), counts[mine] - often
        change = (_count_log_count(counts[mine]) - _count_log_count(rest)).sum()
        entropies[number] = np.log(left) - (weighed - change) / left
        shares[number] = (len(counts) - (rest == 0).sum()) / left
    return entropies, shares


def _count_log_count(counts: np.ndarray) -> np.ndarray:
    """c ln c of whole numbers, 0 for 0."""
    return counts * np.log(np.maximum(counts, 1))
