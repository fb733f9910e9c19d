"""Copied halves: the second half of a row repeats the first, but for a little noise.

The first h = L/2 tokens are uniform, and x_{i+h} is x_i with probability 1 − ε, or else a uniform token. So a row is h
independent pairs with the law p(a, b) = ((1 − ε) [a = b] + ε / T) / T, whose members stand h apart: any order that
reveals the halves one after the other is exact in two passes, and the dilated one, which takes positions as far apart
as they can be, reveals both members in one pass until there are h passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.oracle.source import Argument, Source, check_count, check_share, normalised
from teachers.randomness import Randomness, categorical, uniform


class Copies(Source):
    """Rows of two halves, the second a noisy copy of the first.

    Args:
        tokens: T. length: L, an even number. noise: ε, the share of tokens of the second half that are uniform draws.

    Raises:
        UserError: fewer than two tokens, an odd length, or a share that is none.
    """

    kind = "copies"
    pair: Tensor

    def __init__(self, tokens: int, length: int, noise: float):
        super().__init__()
        check_count("tokens", tokens, 2, 2**10)
        check_share("noise", noise)
        if length < 2 or length % 2:
            raise UserError(f"length is {length}; copied halves make an even number of tokens, at least 2")
        self.tokens, self.row_length, self.noise = tokens, length, noise
        same = torch.eye(tokens, dtype=torch.float64)
        self.register_buffer("pair", ((1 - noise) * same + noise / tokens) / tokens)

    def arguments(self) -> dict[str, Argument]:
        """See `Source.arguments`."""
        assert self.row_length is not None, "set above"
        return {"tokens": self.tokens, "length": self.row_length, "noise": self.noise}

    def posteriors(self, evidence: Tensor) -> Tensor:
        """Of each member, given what is known of the other; see `Source.posteriors`."""
        first, second = evidence.chunk(2, 1)  # (B, h, T)
        return normalised(torch.cat([first * (second @ self.pair), second * (first @ self.pair)], 1))

    def draw(self, rows: int, length: int, generator: Randomness) -> Tensor:
        """See `Source.draw`."""
        first, second = uniform(generator, rows, length).chunk(2, 1)
        tokens = (first * self.tokens).long()
        return torch.cat([tokens, categorical(self.pair.log()[tokens], second)], 1)

    def log_prob(self, rows: Tensor) -> Tensor:
        """See `Source.log_prob`."""
        first, second = rows.chunk(2, 1)
        return self.pair.log()[first, second].sum(1)

    def entropy(self, length: int) -> float:
        """h H(pair); see `Source.entropy`."""
        return length // 2 * -float(torch.xlogy(self.pair, self.pair).sum())
