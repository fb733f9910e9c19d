"""Rows that a deterministic automaton reads: sums over all rows by forward and backward passes over its states."""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.oracle.source import Tables, normalised, one_hot
from teachers.randomness import Randomness, categorical, uniform


class Automaton(Tables):
    """Weights of rows x: Σ_s₀ initial(s₀) Π_l weights(l, s_{l−1}, x_l) final(s_L), where s_l = step(s_{l−1}, x_l).

    Nothing is ever subtracted, and weights are rescaled at each position, so that all digits of a sum are right.

    Args:
        step: (S, T) int64, the next state.
        weights: (L, S, T) float64. initial, final: (S,) float64. All rows together must weigh 1.
    """

    step: Tensor
    weights: Tensor
    initial: Tensor
    final: Tensor

    def __init__(self, step: Tensor, weights: Tensor, initial: Tensor, final: Tensor):
        super().__init__()
        for name, table in (("step", step), ("weights", weights), ("initial", initial), ("final", final)):
            self.register_buffer(name, table)

    def posteriors(self, evidence: Tensor) -> Tensor:
        """See `teachers.oracle.source.Source.posteriors`."""
        forward = self._forward(evidence)[0]
        backward, posteriors = self.final.expand(len(evidence), -1), []
        for position in range(evidence.shape[1] - 1, -1, -1):
            # 1. what each token of each state leads to, (B, S, T)
            ahead = self.weights[position] * backward[:, self.step]
            # 2. how likely each token is: all states it can be written in
            posteriors.append(evidence[:, position] * torch.einsum("bs,bst->bt", forward[position], ahead))
            # 3. one position on to the left
            backward = normalised(torch.einsum("bst,bt->bs", ahead, evidence[:, position]))
        return normalised(torch.stack(posteriors[::-1], 1))

    def _forward(self, evidence: Tensor) -> tuple[list[Tensor], Tensor]:
        """Weights (B, S) of the states before each position, and log of the weight of all rows that fit: (B,)."""
        states = [self.initial.expand(len(evidence), -1)]
        log_weight = evidence.new_zeros(len(evidence))
        for position, weights in enumerate(self.weights):
            written = states[-1][:, :, None] * weights * evidence[:, position, None, :]
            after = torch.zeros_like(states[-1]).index_add_(1, self.step.flatten(), written.flatten(1))
            scale = after.sum(1)
            log_weight = log_weight + scale.log()
            states.append(after / scale[:, None])
        return states, log_weight + (states[-1] @ self.final).log()

    def log_weight(self, rows: Tensor) -> Tensor:
        """log of the weight of whole rows (B, L): (B,)."""
        return self._forward(one_hot(rows, self.step.shape[1]))[1]

    def draw(self, rows: int, generator: Randomness) -> Tensor:
        """Exact draws: (rows, L) int64."""
        length = len(self.weights)
        uniforms, ahead = uniform(generator, rows, length + 1), self._ahead()
        state = categorical((self.initial * ahead[0]).log().expand(rows, -1), uniforms[:, 0])
        tokens = []
        for position in range(length):
            law = self.weights[position] * ahead[position + 1][self.step]  # (S, T)
            tokens.append(categorical(law.log()[state], uniforms[:, position + 1]))
            state = self.step[state, tokens[-1]]
        return torch.stack(tokens, 1)

    def _ahead(self) -> list[Tensor]:
        """(S,) for each position, and for the end: the weight of all that can follow."""
        ahead = [self.final]
        for weights in self.weights.flip(0):
            ahead.append((weights * ahead[-1][self.step]).sum(1))
        return ahead[::-1]
