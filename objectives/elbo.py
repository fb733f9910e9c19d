"""Training a teacher or a judge: the masked-diffusion ELBO (2406.07524, eq. 10) and the autoregressive loss.

The ELBO has a second stage if asked (Seed Diffusion, 2508.02193): after 80% of the updates the model also learns to
undo k_t = ⌊L·a_t⌋ random edits, by −log p(x₀ | edited) at *every* position. It takes the place of the ELBO's
reconstruction term, which is zero where unmasked tokens are carried over; here none is, and the model learns that what
it reads may be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from objectives.objective import LossOutput, Objective, Rollout
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, RowStreams, uniform
from teachers.section import Section


class EditConfig(Section):
    """The second stage of Seed Diffusion's curriculum (2508.02193).

    Attributes:
        share: of the updates, the last ones.
        rate: a_t at t = 1; a_t = rate · t.
    """

    share: float = Field(0.2, gt=0, le=1)  # [paper]
    rate: float = Field(0.1, gt=0, lt=1)  # [paper] a_t ∈ [0, 0.1]; that it is linear in t is [open]

    def first(self, updates: int) -> int:
        """The number of the first update that edits, of so many."""
        return updates - round(self.share * updates)

    def counts(self, t: Tensor, length: int) -> Tensor:
        """k_t = ⌊L·a_t⌋ edits at each of the times (B,): (B,) int64."""
        return (length * self.rate * t.double()).floor().long()

    def most(self, length: int) -> int:
        """k at t = 1."""
        return int(self.counts(torch.ones(1), length))


def stratified_times(uniforms: Tensor, low: float = 1e-3) -> Tensor:
    """Turn (B,) uniforms into times in [low, 1], antithetic in pairs: rows 2i and 2i+1 share u and use u, 1 − u."""
    u = uniforms.clone()
    odd = u[1::2].shape[0]
    u[1::2] = 1 - u[0::2][:odd]
    return low + (1 - low) * u


def cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """−log p(target) of each position, in nats: (N, V), (N,) → (N,)."""
    return -log_probs.gather(-1, targets[:, None]).squeeze(-1)


def masked_cross_entropy(denoiser: Denoiser, z: Tensor, t: Tensor | None, x0: Tensor, masked: Tensor) -> Tensor:
    """Per-position −log p(x₀ᵢ | z) on the positions of ``masked``, zero elsewhere; log-probabilities in chunks.

    Args:
        z, x0, masked: (B, L). t: (B,), or None.

    Returns:
        (B, L), nats.
    """
    features = denoiser.features(Canvas(z, masked, time=t), masked)
    chunks = chunk_count(z.numel(), denoiser.spec.vocabulary)
    (nats,) = in_chunks(lambda f, x: (cross_entropy(denoiser.head(f), x),), chunks, features, x0[masked])
    return scatter(nats, masked)


def edited(x0: Tensor, edits: Tensor, spec: DenoiserSpec, randomness: Randomness, most: int) -> Tensor:
    """Insert, delete or substitute a token at random, ``edits`` (B,) times one after the other: (B, L) → (B, L).

    Each edit is one of the three with equal chance, at a uniform place of the row as it then is, with a uniform token
    that is no mask and, in a substitution, not the one that is there [open]. An insertion, before a token, moves what
    follows to the right, a deletion to the left. Afterwards the row is fitted to the canvas: what has moved out is
    lost, and where fewer tokens are left, masks follow, since what would have moved in is unknown [own].

    Args:
        most: at least ``edits``; as many draws are made for every row, so that a row's do not depend on its batch.
    """
    rows, length = x0.shape
    draws = uniform(randomness, rows, most, 3)
    place = torch.arange(length + most, device=x0.device)
    row = torch.cat([x0, torch.full((rows, most), spec.mask_id, device=x0.device)], 1)
    tokens = torch.full((rows, 1), length, device=x0.device)
    for n in range(most):
        kind, where, what = draws[:, n, :, None].unbind(1)
        doing = n < edits[:, None]
        inserts, deletes, substitutes = (doing & ((3 * kind).long() == k) for k in range(3))
        at = (where * tokens).long()
        present = row.gather(1, at)
        # the one of the allowed tokens, in order: all but the mask, and but the present one when it is replaced
        token = (what * (spec.vocabulary - 1 - substitutes.long())).long()
        mask = torch.full_like(present, spec.mask_id)
        barred = torch.where(substitutes, present, mask)
        token = token + (token >= torch.minimum(barred, mask))
        token = token + (substitutes & (token >= torch.maximum(barred, mask)))
        source = place - (inserts & (place > at)).long() + (deletes & (place >= at)).long()
        row = torch.cat([row, mask], 1).gather(1, source)
        row = torch.where((inserts | substitutes) & (place == at), token, row)
        tokens = tokens + inserts.long() - deletes.long()
    return row[:, :length]


@dataclass
class ElboRollout(Rollout):
    """Clean rows and their corruption at t: masked, and, in the second stage, edited."""

    x0: Tensor
    z: Tensor
    t: Tensor
    edited: Tensor | None = None


class MaskedElbo(Objective):
    """E_t[ w(t) · Σ_masked −log p(x₀ᵢ | z_t) ], w = −α'/(1−α): an upper bound on −log p(x₀), in nats a token.

    Args:
        edit: adds E_t[ Σᵢ −log p(x₀ᵢ | edited_t) ] in the second stage; `begin` says when it comes.
    """

    phases: ClassVar = ("student",)

    def __init__(self, denoiser: Denoiser, process: MaskedProcess, edit: EditConfig | None = None):
        self.denoiser, self.process, self.edit = denoiser, process, edit
        self.group = 2  # antithetic pairs
        self.editing = False

    def begin(self, update: int, updates: int) -> bool:
        """Whether this update edits follows from its number."""
        self.editing = self.edit is not None and update >= self.edit.first(updates)
        return False

    def network(self, phase: str) -> nn.Module:
        """The denoiser."""
        return self.denoiser

    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> ElboRollout:
        """Corrupt real rows at antithetic times."""
        if real is None:
            raise ValueError("the ELBO needs real data")
        spec, edits = self.denoiser.spec, None
        t = stratified_times(uniform(randomness, rows))
        everything = Canvas(real, torch.ones_like(real, dtype=torch.bool))
        z = self.process.corrupt(real, everything, t, spec.mask_id, randomness).tokens
        if self.editing:
            assert self.edit is not None
            length = real.shape[1]
            edits = edited(real, self.edit.counts(t, length), spec, randomness, self.edit.most(length))
        return ElboRollout(real, z, t, edits)

    def count(self, phase: str, rollout: Rollout) -> Tensor:
        """All tokens, masked or not: the bound is per token."""
        return torch.tensor(float(rollout.x0.numel()))

    def loss(self, phase: str, rollout: Rollout) -> LossOutput:
        """The bound, and in the second stage the edit loss, summed over tokens."""
        masked = rollout.z == self.denoiser.spec.mask_id
        loss = masked_cross_entropy(self.denoiser, rollout.z, rollout.t, rollout.x0, masked)
        weighted = (loss * self.process.elbo_weight(rollout.t).to(loss)[:, None]).sum()
        metrics = {"masked_nats": (loss.detach().sum(), masked.sum().to(loss))}
        if rollout.edited is not None:
            everywhere = torch.ones_like(masked)
            undone = masked_cross_entropy(self.denoiser, rollout.edited, rollout.t, rollout.x0, everywhere).sum()
            weighted = weighted + undone
            metrics["edit_nats"] = (undone.detach(), everywhere.sum().to(undone))
        return LossOutput(weighted, metrics)


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
