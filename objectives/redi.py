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

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.elbo import masked_cross_entropy
from objectives.objective import Distillation, LossOutput, Rollout
from objectives.rounds import RoundsConfig, RoundsObjective
from students.fill import fill
from students.samplers import Ancestral
from students.samplers.random_start import random_start
from teachers.canvas import Canvas
from teachers.randomness import RowStreams, uniform


class RediConfig(RoundsConfig):
    """Every default with its origin. The optimiser's are in configs/compare/redi.yaml.

    Attributes:
        steps: K, in which the current model makes a sample of a start.
        random_share: of the start's tokens that are uniform over the vocabulary, the others masked. Above 0 the first
            round needs real rows, and sampling needs ``evaluate.sampler={name: random_start, random_share: …}``.
    """

    phases: ClassVar = ("student",)
    name: Literal["redi"] = "redi"  # type: ignore[assignment]
    rounds: PositiveInt = 3  # [code] ReDi1 to ReDi3
    round_updates: PositiveInt | None = None  # [own] equal parts of the run
    steps: PositiveInt = 16  # [code] for images; 1,024 for text of 1,024 tokens
    random_share: float = Field(0.0, ge=0, le=1)  # [own] any masked teacher and sampler will do; [code] 0.7 for images

    @property
    def most_steps(self) -> int:
        """K."""
        return self.steps

    def build(self, distillation: Distillation) -> Redi:
        """See `ObjectiveConfig.build`."""
        return Redi(self, distillation)


@dataclass
class RediRollout(Rollout):
    """A pair and a state between.

    Attributes:
        start, sample: (B, L) the coupling.
        z: (B, L) the start's tokens where ``undecided``, the sample's elsewhere. t: (B,).
    """

    start: Tensor
    sample: Tensor
    z: Tensor
    undecided: Tensor
    t: Tensor


class Redi(RoundsObjective):
    """The wiring: see the module."""

    def __init__(self, config: RediConfig, distillation: Distillation):
        super().__init__(config, distillation)
        self.config, self.length = config, distillation.length
        self.needs = "rows" if config.random_share else "nothing"

    @torch.no_grad()
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> RediRollout:
        """Draw a coupling and a state of it."""
        share, spec = self.config.random_share, self.student.spec
        canvas = random_start(Canvas.blank(rows, self.length, spec.mask_id, randomness.device), share, spec, randomness)
        start = canvas.tokens
        if share and self.round == 0:
            assert real is not None
            sample = real
        else:
            filled = fill(self.source, canvas, Ancestral(), self.config.steps, randomness, process=self.process)
            sample = filled.tokens
        t = 1 - uniform(randomness, rows)  # in (0, 1]
        undecided = uniform(randomness, *start.shape) >= self.process.alpha(t)[:, None]
        return RediRollout(start, sample, torch.where(undecided, start, sample), undecided, t)

    def count(self, phase: str, rollout: RediRollout) -> Tensor:  # type: ignore[override]
        """Undecided positions."""
        return rollout.undecided.sum()

    def loss(self, phase: str, rollout: RediRollout) -> LossOutput:  # type: ignore[override]
        """Cross-entropy of the sample, summed over undecided positions, all times alike [code]."""
        nats = masked_cross_entropy(self.student, rollout.z, rollout.t.float(), rollout.sample, rollout.undecided)
        return LossOutput(nats.sum(), {"nats": (nats.detach().sum(), rollout.undecided.sum())})
