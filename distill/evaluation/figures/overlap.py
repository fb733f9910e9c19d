"""Memorisation: the longest part of a text that stands in the training text as well, in tokens.

The training text is indexed by a suffix array: all its positions, in the order of what follows them. What follows a
position of another text has its place in that order, and the longest match is with one of the two neighbours there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_TOKENS = 2**22
"""Of the training text that are searched [own]: about five seconds to index."""
STRIDE = 8  # tokens that are compared at once


@dataclass(frozen=True)
class TrainingText:
    """A training text that can be searched.

    Attributes:
        tokens: (M,) int64.
        order: (M,) its positions, sorted by the ``depth`` tokens that follow.
        depth: the longest overlap that is told apart.
    """

    tokens: np.ndarray
    order: np.ndarray
    depth: int

    @staticmethod
    def of(tokens: np.ndarray, depth: int, most: int = MOST_TOKENS) -> TrainingText:
        """Index the first ``most`` tokens (M,) of a training text."""
        tokens = np.asarray(tokens[:most], np.int64)
        return TrainingText(tokens, _suffix_order(tokens, depth), depth)

    def longest_overlap(self, text: np.ndarray) -> int:
        """The longest part of a text (L,) that stands in the training text, in tokens, at most ``depth``."""
        return int(self.overlaps(text).max(initial=0))

    def overlaps(self, text: np.ndarray) -> np.ndarray:
        """(L,) how many tokens from each position of a text (L,) on stand in the training text, at most ``depth``."""
        starts, size = np.arange(len(text)), len(self.order)
        low, high = np.full(len(text), -1), np.full(len(text), size)  # what is before, and what is after
        longest = np.zeros(len(text), np.int64)
        while (open_ := high - low > 1).any():
            middle = (low + high) // 2
            shared, before = self._compare(text, starts[open_], self.order[middle[open_]])
            longest[open_] = np.maximum(longest[open_], shared)
            low[open_] = np.where(before, middle[open_], low[open_])
            high[open_] = np.where(before, high[open_], middle[open_])
        return longest

    def _compare(self, text: np.ndarray, starts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens what follows ``starts`` of a text and ``places`` here have in common, at most ``depth``.

        Returns:
            (S,) that, and (S,) whether what is here comes before in the order.
        """
        shared, before = np.zeros(len(starts), np.int64), np.ones(len(starts), bool)
        left = np.arange(len(starts))
        for first in range(0, self.depth, STRIDE):
            along = first + np.arange(min(STRIDE, self.depth - first))
            theirs = _at(text, starts[left, None] + along, -2)
            ours = _at(self.tokens, places[left, None] + along, -1)
            differs = ours != theirs
            at = np.where(differs.any(1), differs.argmax(1), len(along))
            shared[left] += at
            ends = at < len(along)
            row, place = np.flatnonzero(ends), at[ends]
            before[left[ends]] = ours[row, place] < theirs[row, place]
            left = left[~ends]
            if len(left) == 0:
                break
        return shared, before


def overlaps(training: TrainingText, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The longest overlap of each text: (N,) in tokens, and (N,) as a share of the text."""
    longest = np.array([training.longest_overlap(text) for text in texts])
    sizes = np.array([max(1, len(text)) for text in texts])
    return longest, longest / sizes


def _at(tokens: np.ndarray, places: np.ndarray, beyond: int) -> np.ndarray:
    """Tokens at places, ``beyond`` behind the last one."""
    return np.where(places < len(tokens), tokens[np.minimum(places, len(tokens) - 1)], beyond)


def _suffix_order(tokens: np.ndarray, depth: int) -> np.ndarray:
    """Positions sorted by the ``depth`` tokens from them on, by prefix doubling (Manber & Myers 1993)."""
    rank, known = np.unique(tokens, return_inverse=True)[1] + 1, 1  # 0 is for what is beyond the end
    order = np.argsort(rank, kind="stable")
    while known < depth and rank[order[-1]] < len(tokens):
        key = rank * (len(tokens) + 1)
        key[:-known] += rank[known:]
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        rank = np.empty_like(rank)
        rank[order] = 1 + np.concatenate([[0], np.cumsum(sorted_key[1:] != sorted_key[:-1])])
        known *= 2
    return order
