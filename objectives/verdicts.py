"""The verifier V of step reduction (objectives/step_reduction.py): its settings, its networks, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from objectives.certainty import hidden_canvas
from objectives.objective import Distillation, Needs, ObjectiveConfig, labels_of
from objectives.ratios import DiscriminatorRatio
from objectives.tail import weighted
from objectives.verifiers import (
    at_the_end,
    causal_log_likelihood,
    common_masks,
    load_judge,
    masked_log_likelihood,
    path_log_ratio,
)
from students.adaptive import AdaptiveTrajectory
from teachers.canvas import Batch, Canvas
from teachers.capability import Capability
from teachers.denoiser import Denoiser
from teachers.randomness import RowStreams

if TYPE_CHECKING:
    from objectives.step_reduction import StepReductionConfig


class VerifierConfig(ObjectiveConfig):
    """Which V, with every default's origin.

    Attributes:
        verifier: V. "teacher_path", the teacher's log-ratio to the student, pass by pass (`verifiers.path_log_ratio`):
            the least noise, and no reward for sharpness; "own_path", the same with the student's start for a teacher:
            what it costs to commit at once, and nothing of how the student differs from the teacher; or, of the
            finished row, in nats a token, the "teacher"'s masked log-likelihood, a "judge"'s log-likelihood, or a
            "discriminator"'s mean log-odds.
        verifier_masks: random sets of positions a row, for "teacher"; the same for a whole group.
        judge: an autoregressive model over the student's vocabulary. One that also evaluates the run flatters it.
    """

    verifier: Literal["teacher_path", "own_path", "teacher", "discriminator", "judge"] = "teacher_path"  # [open]
    verifier_masks: PositiveInt = 4  # [own]
    judge: str = "bundled:judge"
    discriminator_blocks: PositiveInt = 4  # [code] of DiDi-Instruct, and below
    discriminator_targets: tuple[float, float] = (0.9, 0.1)
    reward_epsilon: float = Field(default=1e-6, gt=0)
    reward_clamp: float = Field(default=8.0, gt=0)

    @property
    def phases(self) -> tuple[str, ...]:
        """A critic only where it is the verifier."""
        return ("critic", "student") if self.verifier == "discriminator" else ("student",)

    @property
    def counted_blocks(self) -> int:
        """The discriminator's."""
        return self.discriminator_blocks if self.verifier == "discriminator" else 0

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The discriminator's."""
        return frozenset({"hidden states", "blocks"} if self.verifier == "discriminator" else ())


@dataclass(frozen=True)
class Verdict:
    """What trajectories are worth: (B, M) pass by pass; and for a discriminator what it compared, else None."""

    worth: Tensor
    fake: Canvas | None = None
    real: Canvas | None = None
    real_weights: Tensor | None = None


class Verifier:
    """V, and what it asks.

    Args:
        student: with its planner. first: its start.

    Attributes:
        ratio: the discriminator that it trains. judge: what it loads. None where V is another.
    """

    def __init__(self, config: StepReductionConfig, distillation: Distillation, student: Denoiser, first: Denoiser):
        self.config, self.student, self.first = config, student, first
        self.teacher, self.process, self.tail = distillation.teacher, distillation.process, distillation.tail
        self.greedy = distillation.sampler.draw == "greedy"
        self.ratio = _discriminator(config, distillation.start) if config.verifier == "discriminator" else None
        self.judge = load_judge(config.judge, student.spec) if config.verifier == "judge" else None

    @property
    def needs(self) -> Needs:
        """Real rows for a discriminator to compare with."""
        return "nothing" if self.ratio is None else "rows"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What it trains or loads."""
        networks: dict[str, nn.Module] = {}
        if self.ratio is not None:
            networks["critic"] = self.ratio.network
        if self.judge is not None:
            networks["judge"] = self.judge
        return networks

    def verdict(
        self, batch: Batch, path: AdaptiveTrajectory, randomness: RowStreams, weights: Tensor | None
    ) -> Verdict:
        """What V says of trajectories.

        Args:
            weights: (B, L) of the sample, see `objectives.objective.Rollout`.
        """
        config, canvas = self.config, batch.canvas
        if config.verifier in ("teacher_path", "own_path"):
            verifier = self.teacher if config.verifier == "teacher_path" else self.first
            alone = config.trains == "planner"
            worth = path_log_ratio(
                verifier, self.student, canvas, path, randomness, config.group_size, self.process, alone, weights,
                self.greedy,
            )  # fmt: skip
            return Verdict(worth)
        masks = common_masks(randomness, canvas.open, config.verifier_masks, config.group_size)
        if self.ratio is not None:
            return self._odds(self.ratio, labels_of(batch), canvas, path, masks[:, 0], weights)
        if self.judge is not None:
            nats = causal_log_likelihood(self.judge, canvas, path.sample, weights)
        else:
            nats = masked_log_likelihood(self.teacher, canvas, path.sample, masks, self.process, weights)
        return Verdict(at_the_end(nats, path.steps, config.steps))

    def _odds(
        self, ratio: DiscriminatorRatio, labels: Tensor, canvas: Canvas, path: AdaptiveTrajectory, masked: Tensor,
        weights: Tensor | None,
    ) -> Verdict:  # fmt: skip
        """The mean log-odds of a row's masked tokens."""
        ratio.refresh()
        mask_id = self.student.spec.mask_id
        fake, real = (hidden_canvas(x, canvas, masked, mask_id, self.process) for x in (path.sample, labels))
        odds = weighted(ratio.reward(fake, path.sample), weights) * masked
        mean = (odds.sum(1) / masked.sum(1).clamp(min=1)).double()
        worth = at_the_end(mean, path.steps, self.config.steps)
        return Verdict(worth, fake, real, self.tail.weights(labels, canvas.open))


def _discriminator(config: VerifierConfig, start: Denoiser) -> DiscriminatorRatio:
    return DiscriminatorRatio(
        start, config.discriminator_blocks, config.discriminator_targets, config.reward_epsilon, config.reward_clamp
    )
