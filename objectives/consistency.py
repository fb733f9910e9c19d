"""Discrete consistency distillation (DUO, Sahoo et al. 2506.10892, section 4), in its masked form.

One noise gives two states of a row: a uniform u a position, masked at t where u < 1 − α(t), so that for s = t − dt the
masks of z_s are a part of those of z_t. Both states have one end, and the student at z_t shall say what the target says
at z_s, which is closer to it. In round r dt = 2^r / 512, and the target is the averaged student of round r − 1.

On positions masked in both states the loss is KL(p_ν(· | z_t) ‖ p̄(· | z_s)). Where z_s shows the token there is nothing
to ask the target: with carry-over it is certain of x₀, and KL(p_ν ‖ δ) is infinite. DUO never meets this, for its
noise replaces tokens by others and its target stays unsure. Here the divergence from a certain target is taken the
other way round, KL(δ ‖ p_ν) = −log p_ν(x₀ | z_t) [own]: the boundary term. It is what ties the student to the data.
Without it any prediction that ignores its context is consistent with itself, and training, whose target follows the
student, may slide there. With "forward_kl" the exact conditionals are the minimum of both terms, since
E[p(x₀ | z_s) | z_t] = p(x₀ | z_t); the reverse KL, as published, has the normalised *geometric* mean over z_s instead.

Not here: the uniform-state form. It needs a teacher that was trained on uniform noise, whose states say nowhere which
tokens are noise. A `Denoiser` is asked at masked positions and never predicts a mask, `MaskedProcess` is the absorbing
process alone, and every sampler fills masks and keeps the rest: all three contracts would have to hold another process.
The integral over Gaussian noise that DUO caches to find its α goes with it.

What the released code does otherwise: its target is filled at update 0 too, and with the last weights unless told to
take the average; ours is the teacher first, and then the average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.divergences import DISTANCES
from objectives.elbo import cross_entropy
from objectives.objective import Distillation, LossOutput, Rollout
from objectives.rounds import RoundsConfig, RoundsObjective
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.randomness import RowStreams, uniform


class ConsistencyConfig(RoundsConfig):
    """Every default with its origin. The optimiser's are in configs/compare/consistency.yaml.

    Attributes:
        first_steps: dt of the first round is the inverse of this; it doubles each round.
        divergence: of the student at z_t from the target at z_s, where both are masked.
        boundary: weight of −log p(x₀) where z_s shows the token.
    """

    phases: ClassVar = ("student",)
    name: Literal["consistency"] = "consistency"  # type: ignore[assignment]
    rounds: PositiveInt = 5  # [paper] 50,000 updates of 10,000 a round
    round_updates: PositiveInt | None = None  # [own] equal parts of the run; [paper] 10,000
    first_steps: PositiveInt = 512  # [paper]
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"] = "reverse_kl"  # [code]
    boundary: float = Field(1.0, ge=0)  # [own] uniform-state noise needs none

    def build(self, distillation: Distillation) -> Consistency:
        """See `ObjectiveConfig.build`."""
        return Consistency(self, distillation)


@dataclass
class ConsistencyRollout(Rollout):
    """Two states of one row: (B, L) z_t and z_s, (B,) their times, and (B, L) clean x₀."""

    z_t: Tensor
    z_s: Tensor
    t: Tensor
    s: Tensor
    x0: Tensor


class Consistency(RoundsObjective):
    """The wiring: see the module."""

    needs = "rows"

    def __init__(self, config: ConsistencyConfig, distillation: Distillation):
        super().__init__(config, distillation)
        self.config = config

    @property
    def dt(self) -> float:
        """t − s in this round, at most 1."""
        return min(1.0, 2**self.round / self.config.first_steps)

    @torch.no_grad()
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> ConsistencyRollout:
        """Corrupt real rows twice with one noise; t = min(u + dt, 1) [code], so that t = 1 has probability dt."""
        assert real is not None
        t = (uniform(randomness, rows) + self.dt).clamp(max=1)
        s = t - self.dt
        noise, mask_id = uniform(randomness, *real.shape), self.student.spec.mask_id
        z_t, z_s = (torch.where(noise < (1 - self.process.alpha(when))[:, None], mask_id, real) for when in (t, s))
        return ConsistencyRollout(z_t, z_s, t, s, real)

    def count(self, phase: str, rollout: ConsistencyRollout) -> Tensor:  # type: ignore[override]
        """Positions masked at t."""
        return (rollout.z_t == self.student.spec.mask_id).sum()

    def loss(self, phase: str, rollout: ConsistencyRollout) -> LossOutput:  # type: ignore[override]
        """Divergence from the target where it has not seen the token, and the boundary term where it has; summed."""
        mask_id, config = self.student.spec.mask_id, self.config
        masked = rollout.z_t == mask_id
        hidden = rollout.z_s == mask_id
        distance, source = DISTANCES[config.divergence], self.source
        with torch.no_grad():
            theirs = source.features(Canvas(rollout.z_s, hidden, time=rollout.s), masked)

        def at_positions(ours: Tensor, theirs: Tensor, still: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            log_p = self.student.head(ours)
            with torch.no_grad():  # a target that is certain of a shown token must not make the gradient NaN
                log_q = torch.where(still[:, None], source.head(theirs), log_p)
            return distance(log_p, log_q), cross_entropy(log_p, tokens)

        features = self.student.features(Canvas(rollout.z_t, masked, time=rollout.t), masked)
        chunks = chunk_count(rollout.z_t.numel(), self.student.spec.vocabulary)
        still = hidden[masked]
        distances, nats = in_chunks(at_positions, chunks, features, theirs, still, rollout.x0[masked])
        apart, shown = distances[still].sum(), nats[~still].sum()
        return LossOutput(
            apart + config.boundary * shown,
            {"divergence": (apart.detach(), still.sum()), "boundary_nats": (shown.detach(), (~still).sum())},
        )
