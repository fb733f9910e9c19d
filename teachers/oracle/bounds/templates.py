"""Bounds for a mixture of templates. Positions are alike, so that only the number that each pass reveals matters.

*Lower.* A pass of n ≥ 2 positions after N known tokens z. Split the n positions into two groups, and let each guess
the template: the one that most of its tokens are of, ties broken at random. Under a student the two guesses are
independent; under the source they nearly always agree. By data processing KL of the pass is at least that of the two
guesses, and that at least the minimum over all product laws (pair.py). Without known tokens (N = 0) the guesses have
a symmetric law of T symbols; with them, they are reduced to whether the guess is the template that z speaks for most.
The bound of a schedule is the largest of its passes', each with all other passes free (bounds/__init__.py).

*Reached.* As long as passes reveal one position each, the student writes what the source does, or a sharper law of
it. Then it writes the template that z speaks for most, whose posterior is w(z), whatever else is drawn: KL(t_k ‖ Σ_j
w_j t_j) ≤ −log w_k. With no known token that is log T, a student that always writes the same template.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from teachers.oracle.bounds.pair import least_pair_nats, least_table_nats
from teachers.oracle.templates import Templates, partitions

Sizes = tuple[int, ...]
"""How many positions each pass reveals."""


class TemplateBounds:
    """Nats a row, of one source."""

    def __init__(self, source: Templates):
        self.source = source
        self.pass_nats = cache(self._pass_nats)
        self.led = cache(self._led)

    def lower(self, sizes: Sizes) -> float:
        """No student has less."""
        known = itertools.accumulate(sizes, initial=0)
        return max(self.pass_nats(before, size) for before, size in zip(known, sizes, strict=False))

    def reached(self, sizes: Sizes) -> float:
        """Some student has at most this."""
        if max(sizes) == 1:
            return 0.0
        single = next(number for number, size in enumerate(sizes) if size > 1)
        return min(self.led(known) for known in range(single + 1))

    def best(self, passes: int) -> tuple[float, float]:
        """Lower and reached, over all sizes of at most so many passes."""
        length = self.source.row_length
        assert length is not None, "templates have a length"
        every = [sizes for count in range(1, passes + 1) for sizes in compositions(length, count)]
        return min(map(self.lower, every)), min(map(self.reached, every))

    def _pass_nats(self, known: int, size: int) -> float:
        """The least that a pass costs, all others free."""
        if size < 2:
            return 0.0
        tokens, right = self.source.tokens, [self.right(half) for half in (size // 2, size - size // 2)]
        wrong = [(1 - r) / (tokens - 1) for r in right]
        if known == 0:
            same = (right[0] * right[1] + (tokens - 1) * wrong[0] * wrong[1]) / tokens
            return max(0.0, least_pair_nats(tokens, same, (1 / tokens - same) / (tokens - 1)))
        log_p, top = self._evidence(known)
        guess = torch.tensor([right, wrong], dtype=torch.float64)  # (whether it is that template, group) P(guessed)
        guess = torch.stack([guess, 1 - guess], -1)
        share = torch.stack([top, 1 - top], -1)  # (Z, 2)
        tables = torch.einsum("zk,ki,kj->zij", share, guess[:, 0], guess[:, 1])
        return max(0.0, -float((log_p - least_table_nats(tables)).logsumexp(0)))

    def _led(self, known: int) -> float:
        """Of the student that knows so many tokens and then writes one template."""
        log_p, top = self._evidence(known)
        return -float((log_p + top.log()).logsumexp(0))

    def _evidence(self, known: int) -> tuple[Tensor, Tensor]:
        """Over what so many tokens can say: log-probabilities (Z,), and the largest posterior of a template (Z,)."""
        counts = torch.tensor(list(partitions(known, self.source.tokens)), dtype=torch.float64)
        log_p = self.source.log_prob_of(counts) + self.source.log_rows(counts)
        return log_p, (self.source.odds * counts).softmax(-1).amax(-1)

    def right(self, size: int) -> float:
        """With which probability the template that most of ``size`` tokens are of is the true one.

        A multinomial law by its generating function: the true template has m tokens, j others as many, the rest fewer.
        """
        tokens, low = self.source.tokens, self.source.noise / self.source.tokens
        high = 1 - self.source.noise + low
        total = 0.0
        for most in range(size + 1):
            fewer = np.array([low**i / math.factorial(i) for i in range(most)]) if most else np.zeros(1)
            for equal in range(tokens):
                rest = _coefficient(fewer, tokens - 1 - equal, size - most - equal * most)
                tied = math.comb(tokens - 1, equal) * (low**most / math.factorial(most)) ** equal
                total += high**most / math.factorial(most) * tied * rest / (equal + 1)
        return total * math.factorial(size)


def _coefficient(series: np.ndarray, power: int, degree: int) -> float:
    """Of x^degree in a polynomial to a power."""
    if degree < 0:
        return 0.0
    whole = np.ones(1)
    for _ in range(power):
        whole = np.convolve(whole, series)[: degree + 1]
    return float(whole[degree]) if degree < len(whole) else 0.0


def compositions(total: int, parts: int) -> list[Sizes]:
    """The ways to write a number as an ordered sum of so many positive numbers."""
    cuts = itertools.combinations(range(1, total), parts - 1)
    return [tuple(b - a for a, b in itertools.pairwise((0, *cut, total))) for cut in cuts]
