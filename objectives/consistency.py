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

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.divergences import DISTANCES
from objectives.elbo import cross_entropy
from objectives.objective import Distillation, LossOutput, Rollout, labels_of
from objectives.rounds import RoundsConfig, RoundsObjective
from objectives.tail import weighted
from teachers.canvas import Batch, Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.randomness import RowStreams, uniform


class ConsistencyConfig(RoundsConfig):
    """Every default with its origin. The optimiser's are in configs/compare/consistency.yaml.

    Attributes:
        first_steps: dt of the first round is the inverse of this; it doubles each round.
        divergence: of the student at z_t from the target at z_s, where both are masked.
        boundary: weight of −log p(x₀) where z_s shows the token.
    """

    name: Literal["consistency"] = "consistency"
    rounds: PositiveInt = 5  # [paper] 50,000 updates of 10,000 a round
    round_updates: PositiveInt | None = None  # [own] equal parts of the run; [paper] 10,000
    first_steps: PositiveInt = 512  # [paper]
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon"] = "reverse_kl"  # [code]
    boundary: float = Field(default=1.0, ge=0)  # [own] uniform-state noise needs none

    def build(self, distillation: Distillation) -> Consistency:
        """See `ObjectiveConfig.build`."""
        return Consistency(self, distillation)


@dataclass
class ConsistencyRollout(Rollout):
    """Two states of one row, z_t and z_s, and (B, L) clean x₀."""

    z_t: Canvas
    z_s: Canvas
    x0: Tensor


class Consistency(RoundsObjective[ConsistencyRollout]):
    """The wiring: see the module."""

    needs = "rows"
    asks = ()

    def __init__(self, config: ConsistencyConfig, distillation: Distillation):
        super().__init__(config, distillation)
        self.config = config

    @property
    def dt(self) -> float:
        """t − s in this round, at most 1."""
        return min(1.0, 2**self.round / self.config.first_steps)

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> ConsistencyRollout:
        """Corrupt real rows twice with one noise; t = min(u + dt, 1) [code], so that t = 1 has probability dt."""
        t = (uniform(randomness, len(batch)) + self.dt).clamp(max=1)
        noise = uniform(randomness, *batch.canvas.tokens.shape)
        z_t, z_s = (self._state(batch, noise, time) for time in (t, t - self.dt))
        labels = labels_of(batch)
        return ConsistencyRollout(z_t, z_s, labels, weights=self.tail.weights(labels, batch.canvas.open))

    def _state(self, batch: Batch, noise: Tensor, time: Tensor) -> Canvas:
        masked = batch.canvas.open & (noise < (1 - self.process.alpha(time))[:, None])
        tokens = torch.where(masked, self.student.spec.mask_id, labels_of(batch))
        return replace(batch.canvas, tokens=tokens, open=masked, time=time)

    def outline(self, canvas: Canvas) -> ConsistencyRollout:
        """See `Objective.outline`."""
        return ConsistencyRollout(canvas, canvas, canvas.tokens)

    def count(self, phase: str, rollout: ConsistencyRollout) -> Tensor:
        """Positions masked at t."""
        return rollout.z_t.open.sum()

    def loss(self, phase: str, rollout: ConsistencyRollout) -> LossOutput:
        """Divergence from the target where it has not seen the token, and the boundary term where it has; summed."""
        masked, distance, source = rollout.z_t.open, DISTANCES[self.config.divergence], self.source
        # 1. one pass each, at the positions masked at t: (N, H)
        with torch.no_grad():
            theirs = source.features(rollout.z_s, masked)
        ours = self.student.features(rollout.z_t, masked)

        def at_positions(ours: Tensor, theirs: Tensor, still: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            log_p = self.student.head(ours)
            with torch.no_grad():  # a target that is certain of a shown token must not make the gradient NaN
                log_q = torch.where(still[:, None], source.head(theirs), log_p)
            return distance(log_p, log_q), cross_entropy(log_p, tokens)

        # 2. those that are masked at s as well, and those that show their token: (N,)
        still = rollout.z_s.open[masked]
        chunks = chunk_count(masked.numel(), self.student.spec.vocabulary)
        terms = in_chunks(at_positions, chunks, ours, theirs, still, rollout.x0[masked])
        distances, nats = (weighted(term, rollout.weights, masked) for term in terms)
        apart, shown = distances[still].sum(), nats[~still].sum()
        return LossOutput(
            apart + self.config.boundary * shown,
            {"divergence": (apart.detach(), still.sum()), "boundary_nats": (shown.detach(), (~still).sum())},
        )
