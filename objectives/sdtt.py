"""SDTT, self-distillation through time (Deschenaux and Gulcehre, 2410.21035): two steps of a target become one.

A real row is corrupted to z_t. The target takes K ancestral steps of size dt from there; at each masked position its
*two-step* distribution is log p̄(· | z_k), z_k the canvas before the step that revealed the position, or before the last
step where none did. The student is asked once, at z_t, and the loss is the mean over masked positions of
KL(p_ν(· | z_t) ‖ p̄(· | z_k)). In round r dt = K^r / 1,024, and the target is the student of round r − 1.

What the released code does otherwise, and why this does not:

- its times are t·s + (1 − t)·(t − K·dt) with s from 1 to 0, where (1 − s) is meant: at t = 0.5 the first step is taken
  near 0.75, with too small a chance to reveal. Even mended, s ends at 0, so that two steps start at t and t − 2·dt,
  which leaves out t − dt. `step_times` gives t, t − dt, …;
- its "tvd" is the sum of |log p − log q|, which the improbable end of the vocabulary dominates; ours is ½ Σ |p − q|;
- its target is the student's last weights; ours their average, as the loop keeps it. Its loop ends with sys.exit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.divergences import DISTANCES, entropy
from objectives.objective import Distillation, LossOutput, Rollout
from objectives.rounds import RoundsConfig, RoundsObjective
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, categorical, uniform


class SdttConfig(RoundsConfig):
    """Every default with its origin. The optimiser's are in configs/compare/sdtt.yaml.

    Attributes:
        target_steps: K, steps of the target for one of the student; also by what dt grows each round.
        first_steps: steps of the first target's sampler, whose dt is the inverse of this.
        divergence: of the student from the target; "reverse_kl" is KL(student ‖ target).
        lowest_time: t is uniform from here to 1.
    """

    phases: ClassVar = ("student",)
    name: Literal["sdtt"] = "sdtt"  # type: ignore[assignment]
    rounds: PositiveInt = 7  # [paper] 1,024 → 8 steps
    round_updates: PositiveInt | None = None  # [own] equal parts of the run; [paper] 10,000
    target_steps: int = Field(2, ge=2)  # [paper]
    first_steps: PositiveInt = 1024  # [paper]
    divergence: Literal["reverse_kl", "forward_kl", "mean_squared", "total_variation"] = (
        "reverse_kl"  # [paper] the best
    )
    lowest_time: float = Field(1e-3, gt=0, lt=1)  # [code]

    def build(self, distillation: Distillation) -> Sdtt:
        """See `ObjectiveConfig.build`."""
        return Sdtt(self, distillation)


@dataclass
class SdttRollout(Rollout):
    """A corrupted row and what the target's steps gave.

    Attributes:
        z: (B, L), masked at t. t: (B,).
        theirs: (B, L, H) the target's features at each masked position, of the step that revealed it; 0 elsewhere.
    """

    z: Tensor
    t: Tensor
    theirs: Tensor


def step_times(t: Tensor, dt: float, steps: int) -> Tensor:
    """Times between which the target steps: t, t − dt, …, t − steps·dt, none below 0.

    Args:
        t: (B,).

    Returns:
        (steps + 1, B).
    """
    return (t - dt * torch.arange(steps + 1, dtype=t.dtype, device=t.device)[:, None]).clamp(min=0)


@torch.no_grad()
def target_features(
    target: Denoiser, process: MaskedProcess, z: Tensor, times: Tensor, randomness: RowStreams
) -> tuple[Tensor, Tensor]:
    """Let the target step through ``times``.

    Args:
        z: (B, L). times: (K + 1, B), falling.

    Returns:
        (B, L, H) features of the pass that each position of z was revealed by, or of the last; (B, L) the last canvas.
    """
    z, theirs = z.clone(), None
    chunks = chunk_count(z.numel(), target.spec.vocabulary)
    for t, s in pairwise(times):
        masked = z == target.spec.mask_id
        reveal = masked & (uniform(randomness, *z.shape) < process.reveal_probability(t, s)[:, None])
        uniforms = uniform(randomness, *z.shape)
        features = target.features(Canvas(z, masked, time=t), masked)
        if theirs is None:
            theirs = features.new_zeros(*z.shape, features.shape[-1])
        theirs[masked] = features  # a position that stays masked is overwritten by the next step
        drawn = in_chunks(
            lambda f, u: (categorical(target.head(f), u),), chunks, features[reveal[masked]], uniforms[reveal]
        )
        z[reveal] = drawn[0]
    assert theirs is not None
    return theirs, z


class Sdtt(RoundsObjective):
    """The wiring: see the module."""

    needs = "rows"

    def __init__(self, config: SdttConfig, distillation: Distillation):
        super().__init__(config, distillation)
        self.config = config

    @property
    def dt(self) -> float:
        """The target's step in this round; the student learns to step ``target_steps`` times as far."""
        return self.config.target_steps**self.round / self.config.first_steps

    @torch.no_grad()
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> SdttRollout:
        """Corrupt real rows, and let the target take its steps."""
        assert real is not None
        low = self.config.lowest_time
        t = low + (1 - low) * uniform(randomness, rows)
        everything = Canvas(real, torch.ones_like(real, dtype=torch.bool))
        z = self.process.corrupt(real, everything, t, self.student.spec.mask_id, randomness).tokens
        times = step_times(t, self.dt, self.config.target_steps)
        theirs, _ = target_features(self.source, self.process, z, times, randomness)
        return SdttRollout(z, t, theirs)

    def count(self, phase: str, rollout: SdttRollout) -> Tensor:  # type: ignore[override]
        """Masked positions."""
        return (rollout.z == self.student.spec.mask_id).sum()

    def loss(self, phase: str, rollout: SdttRollout) -> LossOutput:  # type: ignore[override]
        """Divergence from the target's steps, summed over masked positions."""
        masked = rollout.z == self.student.spec.mask_id
        distance, source = DISTANCES[self.config.divergence], self.source

        def at_positions(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                log_q = source.head(theirs)
            log_p = self.student.head(ours)
            return distance(log_p, log_q), entropy(log_p.detach())

        features = self.student.features(Canvas(rollout.z, masked, time=rollout.t), masked)
        chunks = chunk_count(rollout.z.numel(), self.student.spec.vocabulary)
        distances, entropies = in_chunks(at_positions, chunks, features, rollout.theirs[masked])
        return LossOutput(distances.sum(), {"entropy": (entropies.sum(), masked.sum())})
