"""Bounds for brackets: exact for one pass, up to the share of rows without balance.

Write s for which positions of a row open, its skeleton, and say that a pass reveals the n positions S after the canvas
z. Given z, the skeletons that complete it to a balanced one all have the same number of openings in S, so any two of
them differ in two positions or more: a student that leaves a position of S to chance writes rows without balance.

*Lower.* The last pass has x_S from a product of laws. Split its KL into that of the skeleton, with openings of
probability b_l, and of the kinds given it. In a balanced row each pair within S costs at least the κ of pair.py. With
A(w, z) = p(w, z) e^{−κ (pairs of w within S)} for a balanced skeleton w, A = max_w A(w, z), and g the probability of z
with any one skeleton without balance,

    V(z) − log p(z) ≥ −log A + (1 − β) R − Σ_l H(b_l),   R = log A − log g,

where β is the probability of balance. It is at most that of a sum of n independent bits having one value, at most
(1/2π) ∫ Π_l (1 − u_l sin²(θ/2))^½ dθ with u_l = 4 b_l (1 − b_l), the sum's characteristic function, and, by Hölder's
inequality, at most the mean over l of G(u_l) = (1/2π) ∫ (1 − u_l sin²(θ/2))^{n/2} dθ. So the last two terms are at
least −τ(R) with τ(R) = max_b n H(b) − R (1 − G(4 b (1 − b))), and the bound of bounds/__init__.py is

    −log [Σ_z A(z) e^{τ(R(z))} + η].

*Reached.* The positions of the first j passes are drawn from a product of laws, and the others get the skeleton that
maximises A(w, z), pairs being charged if one later pass reveals both; a pair that several passes reveal costs nothing,
as its kinds are exact. The laws are improved one by one (mean field), which can only lower the KL. The least over j and
some starts is reached.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from teachers.oracle.bounds.pair import least_pair_nats
from teachers.oracle.brackets import Brackets
from teachers.randomness import generator_of

ANGLES, SHARES = 257, 2001  # points of the two grids of τ
MOST_CANVASES = 2**16  # of those that the reached student is fitted on
STARTS, SWEEPS = 4, 30


class BracketBounds:
    """Nats a row, of one source."""

    def __init__(self, source: Brackets):
        assert source.row_length is not None, "brackets have a length"
        self.source, self.length = source, source.row_length
        # 1. the balanced skeletons (N, L), True where they open, and their pairs (N, L/2, 2)
        words, partners = skeletons(self.length, source.depth)
        self.words, self.pairs = torch.tensor(words), torch.tensor(partners)
        # 2. log-probabilities of the kinds of a pair, and what a pair of one pass costs; of one kind there is no choice
        match = source.match
        self.same = float(match[0, 0].log())
        self.other = float(match[0, -1].log()) if source.kinds > 1 else self.same
        costs = source.kinds > 1
        self.pair = least_pair_nats(source.kinds, math.exp(self.same), math.exp(self.other)) if costs else 0.0
        self.log_word = math.log1p(-source.stray) - math.log(source.skeletons)
        self.log_other = math.log(source.stray) - math.log(source.other_skeletons)

    def lower(self, schedule: Tensor) -> float:
        """No student that reveals positions as (L,) says has less."""
        last = schedule == schedule.max()
        size = int(last.sum())
        if size < 2:
            return 0.0
        log_rest = self.log_other - (self.length - size) * math.log(self.source.kinds)
        sums = [math.log(self.source.stray)]
        for _, log_a in self.canvases(~last, last.long() - 1):
            values, counts = (log_a - log_rest).round(decimals=9).unique(return_counts=True)
            slack = torch.tensor([_slack(size, ratio) for ratio in values.tolist()], dtype=torch.float64)
            sums.append(float((values + log_rest + slack + counts.log()).logsumexp(0)))
        return max(0.0, -float(torch.tensor(sums, dtype=torch.float64).logsumexp(0)))

    def reached(self, schedule: Tensor) -> float:
        """Some student that reveals positions as (L,) says has at most this."""
        numbers = schedule.unique()
        if len(numbers) == self.length:
            return 0.0
        least = math.inf
        for number in numbers.tolist():
            first = schedule < number
            if self.source.tokens ** int(first.sum()) <= MOST_CANVASES:
                least = min(least, self._fitted(first, schedule.masked_fill(first, -1)))
        return least

    def canvases(self, known: Tensor, later: Tensor) -> Iterator[tuple[int, Tensor]]:
        """log A = max_w log A(w, z) of every canvas z of the known positions that some w completes.

        Args:
            known: (L,) bool, n of them. later: (L,) which of the later passes reveals a position; −1 where it is known.

        Returns:
            Which of the n positions open, as binary digits, and log A (K^n,), kinds in the order of their product.
        """
        n, kinds = int(known.sum()), self.source.kinds
        column = known.cumsum(0) - 1
        texts = torch.tensor(list(itertools.product(range(kinds), repeat=n))).view(kinds**n, n)
        # 1. of each skeleton: its part of the canvas, and what does not depend on kinds, (N,)
        bits = (self.words[:, known].long() @ 2 ** torch.arange(n - 1, -1, -1)).tolist()
        first, second = self.pairs.unbind(-1)  # (N, L/2)
        charged = ((later[first] == later[second]) & (later[first] >= 0)).sum(1)
        alone = (known[first] != known[second]).sum(1)
        base = self.log_word - charged * self.pair - alone * math.log(kinds)
        # 2. of those that share a canvas, the best for all kinds
        inside = known[first] & known[second]
        for value, group in itertools.groupby(sorted(range(len(bits)), key=bits.__getitem__), key=bits.__getitem__):
            best = torch.full((kinds**n,), -torch.inf, dtype=torch.float64)
            for word in group:
                pairs = column[self.pairs[word][inside[word]]]  # (P, 2)
                equal = (texts[:, pairs[:, 0]] == texts[:, pairs[:, 1]]).sum(1)
                log_a = base[word] + equal * self.same + (len(pairs) - equal) * self.other
                best = torch.maximum(best, log_a)
            yield value, best

    def _fitted(self, first: Tensor, later: Tensor) -> float:
        """KL of the student that draws ``first`` (L,) from a product of laws, and the rest by the best skeleton."""
        n, kinds = int(first.sum()), self.source.kinds
        # 1. canvases that nothing completes: all that follows is uniform
        log_rest = self.log_other - n * math.log(kinds) + (self.length - n) * math.log(2)
        log_a = torch.full((2**n, kinds**n), log_rest, dtype=torch.float64)
        for bits, values in self.canvases(first, later):
            log_a[bits] = values
        if n == 0:
            return -float(log_a)
        # 2. an axis for each position, 2 K entries each: whether it opens, and its kind
        axes = [axis for place in range(n) for axis in (place, n + place)]
        values = log_a.view([2] * n + [kinds] * n).permute(axes).reshape([2 * kinds] * n)
        return min(_mean_field(values, start) for start in range(STARTS))


def _mean_field(values: Tensor, seed: int) -> float:
    """−Σ H(q_l) − E_q[values] of a product of laws q_l, each in turn the best given the others."""
    n, tokens = values.dim(), values.shape[0]
    draws = torch.rand(n, tokens, generator=generator_of(seed), dtype=torch.float64)
    laws = list((8 * draws).softmax(1))
    nats = math.inf
    for _ in range(SWEEPS):
        before = nats
        for place in range(n):
            left = values.movedim(place, 0)
            for law in reversed(laws[:place] + laws[place + 1 :]):  # the last axis first
                left = left @ law
            laws[place] = left.softmax(0)
            nats = sum(float(torch.xlogy(law, law).sum()) for law in laws) - float(left @ laws[place])
        if before - nats < 1e-9:
            break
    return nats


@cache
def _slack(size: int, ratio: float) -> float:
    share, chance = _one_value(size)
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
    return float((size * entropy - ratio * (1 - chance if ratio > 0 else 1.0)).max())


@cache
def _one_value(size: int) -> tuple[Tensor, Tensor]:
    """Probabilities b of an opening, and G(4 b (1 − b)), the bound on that of a sum of ``size`` bits having one value.

    The integrand is a smooth periodic function, for which the sum over evenly spaced points is as good as the integral.
    """
    share = torch.cat(
        [torch.logspace(-30, -3, SHARES, dtype=torch.float64), torch.linspace(1e-3, 0.5, SHARES).double()]
    )
    angle = torch.linspace(0, math.pi, ANGLES, dtype=torch.float64)
    powers = (1 - 4 * (share * (1 - share))[:, None] * torch.sin(angle / 2) ** 2).clamp(min=0) ** (size / 2)
    return share, torch.trapezoid(powers, angle, dim=1) / math.pi


def skeletons(length: int, depth: int) -> tuple[list[list[bool]], list[list[tuple[int, int]]]]:
    """All balanced skeletons of a length and a depth, True where they open, and the pairs of each."""
    words: list[list[bool]] = []
    partners: list[list[tuple[int, int]]] = []

    def write(word: list[bool], stack: list[int], pairs: list[tuple[int, int]]) -> None:
        place = len(word)
        if place == length:
            words.append(word)
            partners.append(pairs)
            return
        if len(stack) < min(depth, length - place):
            write([*word, True], [*stack, place], pairs)
        if stack:
            write([*word, False], stack[:-1], [*pairs, (stack[-1], place)])

    write([], [], [])
    return words, partners
