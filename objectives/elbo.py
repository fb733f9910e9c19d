"""Training a teacher or a judge: the masked-diffusion ELBO (2406.07524, eq. 10) and the autoregressive loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from objectives.objective import LossOutput, Objective, Rollout
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


def stratified_times(uniforms: Tensor, low: float = 1e-3) -> Tensor:
    """Turn (B,) uniforms into times in [low, 1], antithetic in pairs: rows 2i and 2i+1 share u and use u, 1 − u."""
    u = uniforms.clone()
    odd = u[1::2].shape[0]
    u[1::2] = 1 - u[0::2][:odd]
    return low + (1 - low) * u


def cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """−log p(target) of each position, in nats: (N, V), (N,) → (N,)."""
    return -log_probs.gather(-1, targets[:, None]).squeeze(-1)


def scatter(values: Tensor, where: Tensor) -> Tensor:
    """Put (N,) values at the True positions of (B, L) ``where``, in row-major order, and zeros elsewhere: (B, L)."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def masked_cross_entropy(denoiser: Denoiser, z: Tensor, t: Tensor | None, x0: Tensor, masked: Tensor) -> Tensor:
    """Per-position −log p(x₀ᵢ | z) on the positions of ``masked``, zero elsewhere; log-probabilities in chunks.

    Args:
        z, x0, masked: (B, L). t: (B,), or None.

    Returns:
        (B, L), nats.
    """
    features = denoiser.features(z, t, select=masked)
    chunks = chunk_count(z.numel(), denoiser.spec.vocabulary)
    (nats,) = in_chunks(lambda f, x: (cross_entropy(denoiser.head(f), x),), chunks, features, x0[masked])
    return scatter(nats, masked)


@dataclass
class ElboRollout(Rollout):
    """Clean rows and their corruption at t."""

    x0: Tensor
    z: Tensor
    t: Tensor


class MaskedElbo(Objective):
    """E_t[ w(t) · Σ_masked −log p(x₀ᵢ | z_t) ], w = −α'/(1−α): an upper bound on −log p(x₀), in nats a token."""

    phases: ClassVar = ("student",)

    def __init__(self, denoiser: Denoiser, process: MaskedProcess):
        self.denoiser, self.process = denoiser, process
        self.group = 2  # antithetic pairs

    def network(self, phase: str) -> nn.Module:
        """The denoiser."""
        return self.denoiser

    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> ElboRollout:
        """Corrupt real rows at antithetic times."""
        if real is None:
            raise ValueError("the ELBO needs real data")
        t = stratified_times(uniform(randomness, rows))
        return ElboRollout(real, self.process.corrupt(real, t, self.denoiser.spec.mask_id, randomness), t)

    def count(self, phase: str, rollout: Rollout) -> Tensor:
        """All tokens, masked or not: the bound is per token."""
        return torch.tensor(float(rollout.x0.numel()))

    def loss(self, phase: str, rollout: Rollout) -> LossOutput:
        """The bound, summed over tokens."""
        masked = rollout.z == self.denoiser.spec.mask_id
        loss = masked_cross_entropy(self.denoiser, rollout.z, rollout.t, rollout.x0, masked)
        weighted = (loss * self.process.elbo_weight(rollout.t).to(loss)[:, None]).sum()
        plain = (loss.detach().sum(), masked.sum().to(loss))
        return LossOutput(weighted, {"masked_nats": plain})


class Autoregressive(Objective):
    """−Σ log p(xᵢ | x_{<i}): how a judge is trained. The first token has no context and is not scored."""

    phases: ClassVar = ("student",)

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    def network(self, phase: str) -> nn.Module:
        """The language model."""
        return self.denoiser

    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> ElboRollout:
        """Real rows as they are."""
        if real is None:
            raise ValueError("an autoregressive model needs real data")
        return ElboRollout(real, real, torch.zeros(rows))

    def count(self, phase: str, rollout: Rollout) -> Tensor:
        """Scored tokens."""
        return torch.tensor(float(rollout.x0[:, 1:].numel()))

    def loss(self, phase: str, rollout: Rollout) -> LossOutput:
        """Negative log-likelihood, summed over tokens."""
        scored = torch.ones_like(rollout.x0, dtype=torch.bool)
        scored[:, 0] = False
        return LossOutput(masked_cross_entropy(self.denoiser, rollout.z, None, rollout.x0, scored).sum())
