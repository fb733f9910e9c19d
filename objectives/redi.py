"""ReDi, rectified discrete flow (Yoo et al. 2507.15897): learn the pairs of start and sample that the model makes.

A few-step sampler draws tokens independently within a step, and what that misses is the conditional total correlation
TC(x | z_t) = Σᵢ H(xᵢ | z_t) − H(x | z_t) of the coupling (start, sample) that the model was trained on. Each round
draws a new coupling: a start, and the sample that the current model makes of it in K steps. The student is trained on
it by cross-entropy: a state z_t keeps the sample's token with probability α(t) and holds the start's elsewhere, and the
student predicts the sample there. The paper proves that TC does not grow from round to round.

What the start tells decides what is gained. The released image model starts from a mixture, 30% masks and 70% random
tokens, so that different starts may lead to different samples; it is first trained on that noise with real data
(``random_share`` > 0: the first round, whose coupling is independent; then the pairs). With ``random_share: 0`` every
row starts from the same masks, the teacher has already learned the independent coupling, and a round can lower TC only
by learning the K-step sampler's *own law*, including what its factorised steps got wrong: one round with K = 1 makes TC
zero and every token independent. So K should be as many steps as the current model needs to write well.

What the released code has and this does not: its network is told which tokens are random, by an input of its own; a
stock denoiser is not, and must tell from the row. It also trains on tokens already decided; no sampler of ours asks
there. Its text version starts from uniform noise on DUO, whose process is not ours (see objectives/consistency.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.elbo import masked_cross_entropy
from objectives.objective import Distillation, LossOutput, Rollout, Surroundings, labels_of
from objectives.rounds import RoundsConfig, RoundsObjective
from objectives.tail import weighted
from students.fill import fill
from students.samplers import Ancestral
from students.samplers.random_start import RandomStart, random_start
from teachers.canvas import Batch, Canvas
from teachers.randomness import RowStreams, uniform


class RediConfig(RoundsConfig):
    """Every default with its origin. The optimiser's are in configs/compare/redi.yaml.

    Attributes:
        steps: K, in which the current model makes a sample of a start.
        random_share: of the start's tokens that are uniform over the vocabulary, the others masked. Above 0 the first
            round needs real rows, and the run's ``sampler`` must be ``{name: random_start, random_share: …}``.
    """

    name: Literal["redi"] = "redi"
    rounds: PositiveInt = 3  # [code] ReDi1 to ReDi3
    round_updates: PositiveInt | None = None  # [own] equal parts of the run
    steps: PositiveInt = 16  # [code] for images; 1,024 for text of 1,024 tokens
    random_share: float = Field(default=0.0, ge=0, le=1)  # [own] any masked teacher and sampler do; [code] images: 0.7

    @property
    def most_steps(self) -> int:
        """K."""
        return self.steps

    def check(self, run: Surroundings) -> None:
        """What a student has learned to make something of is what it must be given."""
        super().check(run)
        start = run.sampler.random_share if isinstance(run.sampler, RandomStart) else 0.0
        if start != self.random_share:
            raise ValueError(
                f"objective.random_share is {self.random_share}, but sampler {run.sampler.name!r} starts from "
                f"{start:.0%} random tokens; set sampler={{name: random_start, random_share: {self.random_share}}}"
            )

    def build(self, distillation: Distillation) -> Redi:
        """See `ObjectiveConfig.build`."""
        return Redi(self, distillation)


@dataclass
class RediRollout(Rollout):
    """A pair and a state between.

    Attributes:
        start, sample: (B, L) the coupling.
        z: the start's tokens where it is open, the sample's elsewhere.
    """

    start: Tensor
    sample: Tensor
    z: Canvas


class Redi(RoundsObjective[RediRollout]):
    """The wiring: see the module."""

    def __init__(self, config: RediConfig, distillation: Distillation):
        super().__init__(config, distillation)
        self.config = config
        self.needs = "rows" if config.random_share else "nothing"

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> RediRollout:
        """Draw a coupling and a state of it."""
        # 1. the start, and what the current model makes of it
        start = random_start(batch.canvas, self.config.random_share, self.student.spec, randomness)
        sample = self._sample(batch, start, randomness)
        # 2. a state between them
        t = 1 - uniform(randomness, len(batch))  # in (0, 1]
        undecided = start.open & (uniform(randomness, *start.tokens.shape) >= self.process.alpha(t)[:, None])
        z = replace(start, tokens=torch.where(undecided, start.tokens, sample), open=undecided, time=t)
        return RediRollout(start.tokens, sample, z, weights=self.tail.weights(sample, start.open))

    def _sample(self, batch: Batch, start: Canvas, randomness: RowStreams) -> Tensor:
        if self.config.random_share and self.round == 0:
            return labels_of(batch)
        return fill(self.source, start, Ancestral(), self.config.steps, randomness, process=self.process).tokens

    def outline(self, canvas: Canvas) -> RediRollout:
        """See `Objective.outline`."""
        return RediRollout(canvas.tokens, canvas.tokens, canvas)

    def count(self, phase: str, rollout: RediRollout) -> Tensor:
        """Undecided positions."""
        return rollout.z.open.sum()

    def loss(self, phase: str, rollout: RediRollout) -> LossOutput:
        """Cross-entropy of the sample, summed over undecided positions, all times alike [code]."""
        nats = weighted(masked_cross_entropy(self.student, rollout.z, rollout.sample), rollout.weights)
        return LossOutput(nats.sum(), {"nats": (nats.detach().sum(), rollout.z.open.sum())})
