"""The masked (absorbing) noise process: Sahoo et al. 2406.07524, Shi et al. 2406.04329.

Time runs from 0 (clean) to 1 (all masked); α(t) is the probability that a token is still unmasked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from teachers.canvas import Canvas
from teachers.randomness import Randomness, categorical, uniform

Schedule = Literal["log-linear", "cosine"]


@dataclass(frozen=True)
class MaskedProcess:
    """α(t) and everything that follows from it; stateless, generators are arguments."""

    schedule: Schedule = "log-linear"

    def alpha(self, t: Tensor) -> Tensor:
        """P(a token is unmasked at t): 1 − t, or 1 − cos(π(1−t)/2)."""
        return 1 - t if self.schedule == "log-linear" else 1 - torch.cos(math.pi / 2 * (1 - t))

    def alpha_prime(self, t: Tensor) -> Tensor:
        """dα/dt, never positive."""
        if self.schedule == "log-linear":
            return -torch.ones_like(t)
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def time_of(self, alpha: Tensor) -> Tensor:
        """The t with α(t) = ``alpha``."""
        return 1 - alpha if self.schedule == "log-linear" else 1 - 2 / math.pi * torch.acos(1 - alpha)

    def elbo_weight(self, t: Tensor) -> Tensor:
        """−α'(t) / (1 − α(t)), the weight of the masked cross-entropy in the ELBO; 1/t for log-linear noise."""
        return -self.alpha_prime(t) / (1 - self.alpha(t))

    def complement_weight(self, t: Tensor) -> Tensor:
        """−α'(t) / α(t), the ELBO's weight where the tokens that are *unmasked* at t are masked instead.

        They are as many as at t' with α(t') = 1 − α(t), and −α'(t')/(1 − α(t')) · |dt'/dt| is this.
        """
        return -self.alpha_prime(t) / self.alpha(t)

    def reveal_probability(self, t: Tensor, s: Tensor) -> Tensor:
        """P(unmasked at s | masked at t) for s ≤ t: (α(s) − α(t)) / (1 − α(t))."""
        return (self.alpha(s) - self.alpha(t)) / (1 - self.alpha(t))

    def corrupt(self, x0: Tensor, canvas: Canvas, t: Tensor, mask_id: int, randomness: Randomness) -> Canvas:
        """Draw z_t ~ q(z_t | x₀): each open token is masked independently with probability 1 − α(t).

        Args:
            x0: (B, L) clean tokens.
            canvas: which of them are open; prompts, suffixes and padding are never masked.
            t: (B,) times; or (B, L), a time for each token.

        Returns:
            The canvas at time t, open where it is masked; it says the time where a row has one.
        """
        one_a_row = t.dim() == 1
        masked = uniform(randomness, *x0.shape) < (1 - self.alpha(t.double())).view(len(t), -1)
        masked &= canvas.open
        tokens = torch.where(masked, mask_id, x0)
        return replace(canvas, tokens=tokens, open=masked, time=t if one_a_row else None)

    def reverse_step(
        self, z: Tensor, log_probs: Tensor, t: Tensor, s: Tensor, mask_id: int, generator: Randomness
    ) -> Tensor:
        """Draw z_s ~ p(z_s | z_t): every masked token is revealed with `reveal_probability`, drawn from ``log_probs``.

        Args:
            z: (B, L). log_probs: (B, L, V). t, s: (B,), s ≤ t.
        """
        reveal = (z == mask_id) & (uniform(generator, *z.shape) < self.reveal_probability(t, s).double()[:, None])
        return torch.where(reveal, categorical(log_probs, uniform(generator, *z.shape)), z)
