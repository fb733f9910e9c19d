"""Brackets: rows in which every bracket is closed in its order, to a bounded depth, mostly by one of its own kind.

Which positions open and which close is the *skeleton* of a row. It is balanced with probability 1 − η, and then uniform
over the N balanced skeletons of L brackets that are never deeper than D. Each pair has a kind k, uniform over K; its
closing bracket is of that kind with probability 1 − ε, or else of a uniform one. So a row of balanced skeleton has

    p(x) = (1 − η) / N · Π_pairs p(k, k'),   p(k, k') = ((1 − ε) [k = k'] + ε / K) / K.

With probability η a row is uniform over those without a balanced skeleton, so that no row is impossible and every KL is
finite. Posteriors are forward–backward over a finite automaton: its states are the stacks of open kinds, and for rows
without balance the depth alone, until that fails.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.oracle.automaton import Automaton
from teachers.oracle.source import Argument, Source, check_count, check_share
from teachers.randomness import Randomness

OPENING, CLOSING = "([{<", ")]}>"
MOST_STACKS = 2**10


class Brackets(Source):
    """Tokens 0 … K−1 open, K … 2K−1 close.

    Args:
        kinds: K, 1 to 4. depth: D. length: L, an even number.
        noise: ε, the share of closing brackets that are of a uniform kind.
        stray: η, the share of rows that are not balanced.

    Attributes:
        skeletons: N.

    Raises:
        UserError: too many stacks to hold, an odd length, or a share that is none.
    """

    kind = "brackets"

    def __init__(self, kinds: int, depth: int, length: int, noise: float, stray: float):
        super().__init__()
        check_count("kinds", kinds, 1, len(OPENING))
        check_count("depth", depth, 1, 2**10)
        check_share("noise", noise)
        check_share("stray", stray)
        if length < 2 or length % 2:
            raise UserError(f"length is {length}; brackets make an even number of tokens, at least 2")
        if sum(kinds**d for d in range(depth + 1)) > MOST_STACKS:
            raise UserError(
                f"{kinds} kinds of brackets to a depth of {depth} have more than {MOST_STACKS} stacks; use fewer kinds "
                "or less depth"
            )
        self.tokens, self.row_length = 2 * kinds, length
        self.kinds, self.depth, self.noise, self.stray = kinds, depth, noise, stray
        counts = skeleton_counts(length, depth)
        self.skeletons = int(counts[length, 0])
        self.automaton = self._automaton(counts)

    def arguments(self) -> dict[str, Argument]:
        """See `Source.arguments`."""
        assert self.row_length is not None, "set above"
        return {
            "kinds": self.kinds, "depth": self.depth, "length": self.row_length, "noise": self.noise,
            "stray": self.stray,
        }  # fmt: skip

    def words(self) -> list[str]:
        """Brackets."""
        return [*OPENING[: self.kinds], *CLOSING[: self.kinds]]

    def description(self, length: int) -> str:
        """See `Source.description`."""
        return f"brackets of {self.kinds} kinds, {self.skeletons} balanced skeletons to a depth of {self.depth}"

    @property
    def match(self) -> Tensor:
        """(K, K) the law of the kinds of a pair."""
        same = torch.eye(self.kinds, dtype=torch.float64)
        return ((1 - self.noise) * same + self.noise / self.kinds) / self.kinds

    @property
    def other_skeletons(self) -> int:
        """2^L − N."""
        assert self.row_length is not None, "set above"
        return 2**self.row_length - self.skeletons

    def _automaton(self, counts: Tensor) -> Automaton:
        """Stacks, from the empty one, and then depths 0 … D and failure, from depth 0."""
        stacks = [s for d in range(self.depth + 1) for s in itertools.product(range(self.kinds), repeat=d)]
        place = {stack: state for state, stack in enumerate(stacks)}
        length, lost = len(counts) - 1, len(stacks) + self.depth + 1
        step = torch.full((lost + 1, self.tokens), lost)
        weights = torch.zeros(length, lost + 1, self.tokens, dtype=torch.float64)
        # 1. balanced rows: how many skeletons go on with a bracket, of all that there are from here
        given_top = self.match * self.kinds  # p(closing kind | opening kind)
        for stack, state in place.items():
            depth = len(stack)
            for kind in range(self.kinds):
                if depth < self.depth:
                    step[state, kind] = place[*stack, kind]
                    weights[:, state, kind] = _share(counts, depth, 1) / self.kinds
                if depth > 0:
                    step[state, self.kinds + kind] = place[stack[:-1]]
                    weights[:, state, self.kinds + kind] = _share(counts, depth, -1) * given_top[stack[-1], kind]
        # 2. the others: all tokens alike, as long as it is not a balanced skeleton that comes out
        weights[:, len(stacks) :] = 1 / self.tokens
        for depth in range(self.depth + 1):
            state = len(stacks) + depth
            step[state, : self.kinds] = state + 1  # beyond D is failure
            step[state, self.kinds :] = state - 1 if depth else lost
        initial = torch.zeros(lost + 1, dtype=torch.float64)
        initial[0] = 1 - self.stray
        initial[len(stacks)] = self.stray / (1 - self.skeletons / 2**length)
        final = torch.ones_like(initial)
        final[len(stacks)] = 0
        return Automaton(step, weights, initial, final)

    def posteriors(self, evidence: Tensor) -> Tensor:
        """See `Source.posteriors`."""
        return self.automaton.posteriors(evidence)

    def draw(self, rows: int, length: int, generator: Randomness) -> Tensor:
        """See `Source.draw`."""
        return self.automaton.draw(rows, generator)

    def log_prob(self, rows: Tensor) -> Tensor:
        """See `Source.log_prob`."""
        return self.automaton.log_weight(rows)

    def entropy(self, length: int) -> float:
        """H(balanced?) + (1 − η)(log N + L/2 H(pair)) + η log of the number of other rows; see `Source.entropy`."""
        pairs = length // 2 * -float(torch.xlogy(self.match, self.match).sum())
        others = math.log(self.other_skeletons) + length * math.log(self.kinds)
        which = -(self.stray * math.log(self.stray) + (1 - self.stray) * math.log1p(-self.stray))
        return which + (1 - self.stray) * (math.log(self.skeletons) + pairs) + self.stray * others


def skeleton_counts(length: int, depth: int) -> Tensor:
    """How many skeletons of r brackets close everything from a depth, never deeper than D: (L + 1, D + 1), by r."""
    counts = torch.zeros(length + 1, depth + 1, dtype=torch.float64)
    counts[0, 0] = 1
    for left in range(1, length + 1):
        counts[left, :-1] += counts[left - 1, 1:]
        counts[left, 1:] += counts[left - 1, :-1]
    return counts


def _share(counts: Tensor, depth: int, move: int) -> Tensor:
    """Of the skeletons from a depth, those that go up or down: (L,), by position; 0 where there are none."""
    here, there = counts[1:, depth].flip(0), counts[:-1, depth + move].flip(0)
    return torch.where(here > 0, there / here.clamp(min=1), 0.0)
