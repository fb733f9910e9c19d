"""SDTT, self-distillation through time (Deschenaux and Gulcehre, 2410.21035): two steps of a target become one.

A real row is corrupted to z_t. The target takes K ancestral steps of size dt from there; at each masked position its
*two-step* distribution is log p̄(· | z_k), z_k the canvas before the step that revealed the position, or before the last
step where none did. The student is asked once, at z_t, and the loss is the mean over masked positions of
KL(p_ν(· | z_t) ‖ p̄(· | z_k)). In round r dt = K^r / 1,024, and the target is the student of round r − 1.

What the released code does otherwise, and why this does not:

- its times are t·s + (1 − t)·(t − K·dt) with s from 1 to 0, where (1 − s) is meant: at t = 0.5 the first step is taken
  near 0.75, with too small a chance to reveal. Even mended, s ends at 0, so that two steps start at t and t − 2·dt,
  which leaves out t − dt. `ShortSteps` steps from t to t − dt to …;
- its "tvd" is the sum of |log p − log q|, which the improbable end of the vocabulary dominates; ours is ½ Σ |p − q|;
- its target is the student's last weights; ours their average, as the loop keeps it. Its loop ends with sys.exit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.divergences import DISTANCES, entropy
from objectives.objective import Distillation, LossOutput, Rollout, labels_of
from objectives.rounds import RoundsConfig, RoundsObjective
from objectives.tail import weighted
from students.drawing import Tokens
from students.fill import Pass, fill
from students.samplers.sampler import Sampler
from students.samplers.work import Asked, Work
from teachers.canvas import Batch, Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.host import learned
from teachers.positions import at, on_device, positions
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


class SdttConfig(RoundsConfig):
    """Every default with its origin. The optimiser's are in configs/compare/sdtt.yaml.

    Attributes:
        target_steps: K, steps of the target for one of the student; also by what dt grows each round.
        first_steps: steps of the first target's sampler, whose dt is the inverse of this.
        divergence: of the student from the target; "reverse_kl" is KL(student ‖ target).
        lowest_time: t is uniform from here to 1.
    """

    name: Literal["sdtt"] = "sdtt"
    rounds: PositiveInt = 7  # [paper] 1,024 → 8 steps
    round_updates: PositiveInt | None = None  # [own] equal parts of the run; [paper] 10,000
    target_steps: int = Field(default=2, ge=2)  # [paper]
    first_steps: PositiveInt = 1024  # [paper]
    divergence: Literal["reverse_kl", "forward_kl", "mean_squared", "total_variation"] = (
        "reverse_kl"  # [paper] the best
    )
    lowest_time: float = Field(default=1e-3, gt=0, lt=1)  # [code]

    def build(self, distillation: Distillation) -> Sdtt:
        """See `ObjectiveConfig.build`."""
        return Sdtt(self, distillation)


@dataclass
class SdttRollout(Rollout):
    """A corrupted row and what the target's steps gave.

    Attributes:
        z: the row, masked at t.
        theirs: (B, L, H) the target's features at each masked position, of the step that revealed it; 0 elsewhere.
    """

    z: Canvas
    theirs: Tensor


class ShortSteps(Sampler):
    """Ancestral steps of size ``dt`` from the canvas's own time on, in which every open position is asked.

    In step n, from t − n·dt to t − (n+1)·dt, none below 0, an open position is revealed with `reveal_probability`;
    what is still open after the last step stays so. A step asks where it reveals nothing, too, because SDTT learns
    there what the target says.
    """

    name: Literal["short_steps"] = "short_steps"
    dt: float = Field(gt=0)

    def begin(self, work: Work) -> int:
        """As many passes as steps."""
        return work.most

    def ask(self, work: Work) -> Asked:
        """All rows, whether anything is open or not: so that every process makes as many passes."""
        rows = on_device(range(len(work.canvas)), work.canvas.device)
        t, s = self.time(work.canvas, work.number), self.time(work.canvas, work.number + 1)
        chance, open_ = work.process.reveal_probability(t, s), work.canvas.open.clone()
        work.revealed = open_ & (uniform(work.randomness, *open_.shape) < chance[:, None])
        learned(open_, work.revealed, work.canvas.tokens)
        return Asked(rows, open_, t)

    def time(self, canvas: Canvas, step: int) -> Tensor:
        """(B,) before a step."""
        assert canvas.time is not None
        return (canvas.time - self.dt * step).clamp(min=0)

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """Tokens are drawn where they are committed; elsewhere the token says nothing."""
        commit = work.revealed
        where = at(commit, asked.positions)  # (N,)
        drawn = self.draw_tokens(work, replace(asked, positions=commit), at(features, where))
        return Tokens(*(_spread(values, where) for values in drawn)), commit


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """(n, …) values at the True places of ``where`` (N,), zeros elsewhere: (N, …)."""
    return values.new_zeros(len(where), *values.shape[1:]).index_copy_(0, positions(where), values)


def target_features(
    target: Denoiser, process: MaskedProcess, z: Canvas, dt: float, steps: int, randomness: RowStreams
) -> tuple[Tensor, Canvas]:
    """Let the target step on from the time of z.

    Returns:
        (B, L, H) features of the pass that each position of z was revealed by, or of the last; the last canvas.
    """
    passes: list[Tensor] = []

    def record(one: Pass) -> None:
        if not passes:
            passes.append(one.features.new_zeros(*z.open.shape, one.features.shape[-1]))
        # what stays open is overwritten by the next step
        passes[0].flatten(0, 1).index_copy_(0, positions(one.asked.positions), one.features)

    filled = fill(target, z, ShortSteps(dt=dt), steps, randomness, process=process, record=record)
    return passes[0], filled.canvas


class Sdtt(RoundsObjective[SdttRollout]):
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
    def rollout(self, batch: Batch, randomness: RowStreams) -> SdttRollout:
        """Corrupt real rows, and let the target take its steps."""
        low = self.config.lowest_time
        t = low + (1 - low) * uniform(randomness, len(batch))
        labels = labels_of(batch)
        z = self.process.corrupt(labels, batch.canvas, t, self.student.spec.mask_id, randomness)
        theirs, _ = target_features(self.source, self.process, z, self.dt, self.config.target_steps, randomness)
        return SdttRollout(z, theirs, weights=self.tail.weights(labels, batch.canvas.open))

    def outline(self, canvas: Canvas) -> SdttRollout:
        """See `Objective.outline`."""
        with torch.no_grad():
            return SdttRollout(canvas, self.source.features(canvas))

    def count(self, phase: str, rollout: SdttRollout) -> Tensor:
        """Masked positions."""
        return rollout.z.open.sum()

    def loss(self, phase: str, rollout: SdttRollout) -> LossOutput:
        """Divergence from the target's steps, summed over masked positions."""
        masked, distance, source = rollout.z.open, DISTANCES[self.config.divergence], self.source

        def at_positions(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                log_q = source.head(theirs)
            log_p = self.student.head(ours)
            return distance(log_p, log_q), entropy(log_p.detach())

        features = self.student.features(rollout.z, masked)
        chunks = chunk_count(masked.numel(), self.student.spec.vocabulary)
        terms = in_chunks(at_positions, chunks, features, at(rollout.theirs, masked))
        distances, entropies = (weighted(term, rollout.weights, masked) for term in terms)
        return LossOutput(distances.sum(), {"entropy": (entropies.sum(), masked.sum())})
