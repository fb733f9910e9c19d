"""How varied texts are: n-grams in and across texts, runs, and self-BLEU. Pure functions of tokens.

A text is an array of token ids, of any length. Figures that grow or fall with the number of tokens may be compared only
between equal numbers of equally long texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Text = np.ndarray
BLEU_ORDER = 4
"""Longest n-grams of `self_bleu`, as in Texygen (1802.01886)."""
BLEU_TEXTS = 128
"""How many texts are compared with each other [own]: self-BLEU grows with their number."""
BLEU_SMOOTHING = 0.1
"""Counted for an order without a match: the first method of Chen & Cherry (2014), as in Texygen."""


def ngrams(texts: Sequence[Text], order: int) -> list[np.ndarray]:
    """The n-grams of each text as numbers, equal where the n-grams are: (max(0, length − order + 1),) each."""
    sizes = np.array([len(text) for text in texts])
    tokens = np.unique(np.concatenate([*texts, np.zeros(0, np.int64)]), return_inverse=True)[1]
    # 1. an n-gram is the one that is a token shorter and its last token, numbered anew so that no product is too large
    numbers, width = tokens, int(tokens.max(initial=0)) + 1
    for shift in range(1, order):
        numbers = np.unique(numbers[:-1] * width + tokens[shift:], return_inverse=True)[1]
    # 2. none across two texts
    starts = np.cumsum(sizes) - sizes
    return [numbers[start : start + max(0, size - order + 1)] for start, size in zip(starts, sizes, strict=True)]


def distinct(texts: Sequence[Text], order: int) -> float:
    """Different n-grams over all n-grams, of all texts together (1510.03055); 0 where there is none."""
    pooled = np.concatenate(ngrams(texts, order))
    return float(len(np.unique(pooled)) / max(1, len(pooled)))


def distinct_without_each(texts: Sequence[Text], order: int) -> np.ndarray:
    """`distinct` of all texts but each: (N,)."""
    grams = ngrams(texts, order)
    counts = np.bincount(np.concatenate(grams))
    kinds, total = int((counts > 0).sum()), int(counts.sum())
    shares = []
    for own in grams:
        mine, often = np.unique(own, return_counts=True)
        shares.append((kinds - int((counts[mine] == often).sum())) / max(1, total - len(own)))
    return np.array(shares)


def repetitions(texts: Sequence[Text], order: int) -> np.ndarray:
    """The share of each text's n-grams that occurred in it before, "rep-n" (1908.04319).

    Texts without n-grams are left out. It is 0 where no n-gram comes twice, and near 1 for one phrase over and over.
    """
    return np.array([1 - len(np.unique(own)) / len(own) for own in ngrams(texts, order) if len(own)])


def longest_runs(texts: Sequence[Text]) -> np.ndarray:
    """The longest run of one token in each text, in tokens: (N,)."""
    return np.array([_longest_run(text) for text in texts])


def _longest_run(text: Text) -> int:
    changes = np.flatnonzero(np.diff(text)) + 1
    return int(np.diff(np.concatenate([[0], changes, [len(text)]])).max())


def self_bleu(texts: Sequence[Text], most: int = BLEU_TEXTS) -> float:
    """BLEU-4 of a text against all other texts, the mean over the first ``most`` (1802.01886); at least 2.

    1 where all texts are the same, and near 0 where no two share an n-gram.
    """
    texts = texts[:most]
    assert len(texts) > 1, "a text is compared with others"
    log_precision = sum(_log_precisions(texts, order) for order in range(1, BLEU_ORDER + 1)) / BLEU_ORDER
    return float(np.mean(np.exp(np.minimum(0, _log_brevity(texts)) + log_precision)))


def _log_precisions(texts: Sequence[Text], order: int) -> np.ndarray:
    """log of the share of each text's n-grams that another text has as often: (N,)."""
    counted = [np.unique(own, return_counts=True) for own in ngrams(texts, order)]
    kinds = max((int(own.max(initial=-1)) for own, _ in counted), default=-1) + 1
    # 1. how often the text that has most of an n-gram has it, and the text that comes next
    first, second = np.zeros((2, kinds), np.int64)
    for own, counts in counted:
        second[own] = np.maximum(second[own], np.minimum(first[own], counts))
        first[own] = np.maximum(first[own], counts)
    # 2. the most of all others
    shares = []
    for own, counts in counted:
        others = np.where(counts == first[own], second[own], first[own])
        matches = int(np.minimum(counts, others).sum())
        shares.append((matches or BLEU_SMOOTHING) / max(1, int(counts.sum())))
    return np.log(shares)


def _log_brevity(texts: Sequence[Text]) -> np.ndarray:
    """1 − r/c of each text of c tokens, where r is the length of the other text nearest to it: (N,)."""
    sizes = np.array([len(text) for text in texts])
    gaps = np.abs(sizes[:, None] - sizes).astype(float)
    np.fill_diagonal(gaps, np.inf)
    return 1 - sizes[gaps.argmin(1)] / np.maximum(1, sizes)
