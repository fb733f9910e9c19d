"""Integral KL between student and teacher: one family, three free choices, and our default among them.

D(q_ν‖q_θ) = ∫₀¹ ω(t) KL(q_ν(z_t) ‖ q_θ(z_t)) dt over the corrupted marginals of what the student and the teacher write.
The choices are the student's *rollout* (objectives/rollouts.py), the *ratio* that estimates log q_ν − log q_θ
(objectives/ratios.py) and the *gradient* estimator (objectives/gradients.py). Around them stand the *corruption* of the
sample, the law of its *time* and the *weight* of each (objectives/corruption.py), and *regularisers*.
DiDi-Instruct (2509.25035), Di[M]O (2503.15457) and IDLM (2602.19066) are points of the family, named in
objectives/didi_instruct.py, dimo.py and idlm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from objectives.corruption import AnyCorruption, AnyWeight, ElboWeight, Independent, Times
from objectives.gradients import AnyGradient, Marginalised, Move, VocabularyGradient
from objectives.objective import Distillation, LossOutput, Objective, ObjectiveConfig, Rollout
from objectives.parts import completed
from objectives.ratios import AnyRatio, Auxiliary, AuxiliaryRatio, SoftLabels
from objectives.regularisers import Regularisers
from objectives.rollouts import AnyRollout, KStep, Start
from students.adapters import AdapterConfig
from teachers.canvas import Canvas
from teachers.capability import Capability
from teachers.chunks import chunk_count, in_chunks, row_sums
from teachers.randomness import RowStreams

MOVED = {
    "steps": "rollout.steps",
    "random_share": "rollout.random_share",
    "reward_clamp": "ratio.reward_clamp",
    "reward_epsilon": "ratio.reward_epsilon",
    "label_smoothing": "ratio.label_smoothing",
    "critic_targets": "ratio.labels",
    "critic_adapter": "ratio.adapter",
    "discriminator_blocks": "ratio.blocks",
    "discriminator_targets": "ratio.targets",
    "jeffreys": "gradient.jeffreys",
    "exact_share": "gradient.exact_share",
    "group_size": "gradient.group_size",
    "advantage_clamp": "gradient.advantage_clamp",
    "horizon": "corruption.horizon",
    "pi": "time.pi",
    "clamp_time": "time.clamp",
    "omega": "weight.name",
    "clamp_omega": "weight.clamp",
    "importance": "weight.importance",
    "teacher_kl": "regularisers.teacher_weight",
    "teacher_divergence": "regularisers.teacher_divergence",
    "entropy_bonus": "regularisers.entropy_bonus",
}
"""Keys that stood in the objective itself before it had parts, and where they are now."""


class IntegralKLConfig(ObjectiveConfig):
    """Our default: the student's own K-step states, an auxiliary denoiser, marginalised over the vocabulary.

    Attributes:
        rollout: "one_move", "two_moves", "k_step", or "data".
        ratio: "auxiliary" or "discriminator".
        gradient: "marginalised", "logit" (both auxiliary only), "per_token" or "score_function".
        corruption: how the sample is masked before critic and teacher see it: "independent", "coupled" or "nested".
        time: the law of the times that are drawn.
        weight: ω(t), "elbo" or "uniform".
        regularisers: what is added at the student's states.
    """

    phases: ClassVar = ("critic", "student")
    name: Literal["integral_kl"] = "integral_kl"
    rollout: AnyRollout = KStep()  # [own]
    ratio: AnyRatio = Auxiliary()  # [paper] 2503.15457
    gradient: AnyGradient = Marginalised()  # [paper] 2602.19066
    corruption: AnyCorruption = Independent()  # [paper] 2503.15457
    time: Times = Times()  # [own]
    weight: AnyWeight = ElboWeight()  # [paper] 2509.25035
    regularisers: Regularisers = Regularisers()  # [own] none

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, values: Any) -> Any:
        for key in MOVED if isinstance(values, dict) else ():
            if key in values:
                raise ValueError(f"{key} is now {MOVED[key]}; write objective.{MOVED[key]} in its place")
        return completed(cls, values)

    @model_validator(mode="after")
    def _cross_checks(self) -> IntegralKLConfig:
        self.gradient.check(self.ratio, self.corruption)
        self.corruption.check(self.rollout)
        return self

    @property
    def group(self) -> int:
        """The gradient's."""
        return self.gradient.group

    @property
    def most_steps(self) -> int:
        """The rollout's."""
        return self.rollout.most_steps

    @property
    def adapters(self) -> bool:
        """The critic's."""
        return self.ratio.adapter is not None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The critic's."""
        return self.ratio.capabilities

    def with_adapter(self, adapter: AdapterConfig) -> IntegralKLConfig:
        """The same with its critic on an adapter of the teacher; as it is where it has one."""
        return (
            self
            if self.adapters
            else self.model_copy(update={"ratio": self.ratio.model_copy(update={"adapter": adapter})})
        )

    def build(self, distillation: Distillation) -> IntegralKL:
        """See `ObjectiveConfig.build`."""
        return IntegralKL(self, distillation)


@dataclass
class IntegralKLRollout(Rollout):
    """What the student did, and its corruption.

    Attributes:
        states, revealed: (B, M, L), see `students.rollout.Trajectory`.
        sample: (B, L) the student's clean tokens.
        fake: (B, L) the sample corrupted at t.
        real: (B, L) a real row, corrupted alike, for a discriminator; else None.
        weight: (B,) ω(t), over π(t) where importance is asked for.
    """

    states: Tensor
    revealed: Tensor
    sample: Tensor
    fake: Tensor
    real: Tensor | None
    weight: Tensor


class IntegralKL(Objective):
    """The wiring of a rollout, a ratio and a gradient."""

    phases: ClassVar = ("critic", "student")

    def __init__(self, config: IntegralKLConfig, distillation: Distillation):
        self.config, self.group = config, config.group
        self.teacher, self.student = distillation.teacher, distillation.student
        self.process, self.length, self.sampler = distillation.process, distillation.length, distillation.sampler
        self.ratio = config.ratio.build(self.teacher, distillation.start)
        if config.ratio.needs_data or config.rollout.needs_data:
            self.needs = "rows"

    def network(self, phase: str) -> nn.Module:
        """The critic, or the student."""
        return self.student if phase == "student" else self.ratio.network

    @torch.no_grad()
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> IntegralKLRollout:
        """Let the student write, then corrupt what it wrote (and real rows alike)."""
        config, mask_id = self.config, self.student.spec.mask_id
        self.ratio.refresh()
        # 1. the student's moves
        drawn = config.time.draw(rows, self.group, randomness)
        canvas = Canvas.blank(rows, self.length, mask_id, randomness.device)
        start = Start(self.student, self.process, canvas, self.sampler, real, drawn, randomness)
        trajectory = config.rollout.draw(start)
        # 2. the time at which its sample is masked again, and where
        if config.corruption.redraws and config.rollout.timed:  # the first made the state
            drawn = config.time.draw(rows, self.group, randomness)
        t = config.corruption.time(trajectory, drawn, config.time)
        masked = config.corruption.hidden(trajectory, t, self.process, randomness)
        # 3. the sample, and real rows, masked alike
        fake = torch.where(masked, mask_id, trajectory.sample)
        compared = torch.where(masked, mask_id, real) if config.ratio.needs_data and real is not None else None
        weight = config.weight.at(t, config.time, self.process).float()
        return IntegralKLRollout(trajectory.states, trajectory.revealed, trajectory.sample, fake, compared, weight)

    def count(self, phase: str, rollout: IntegralKLRollout) -> Tensor:  # type: ignore[override]
        """Masked tokens for the critic, rows for the student."""
        if phase == "critic":
            return (rollout.fake == self.student.spec.mask_id).sum()
        return torch.tensor(len(rollout.sample))

    def loss(self, phase: str, rollout: IntegralKLRollout) -> LossOutput:  # type: ignore[override]
        """The critic's loss, or the gradient estimator's."""
        return self._critic_loss(rollout) if phase == "critic" else self._student_loss(rollout)

    def _critic_loss(self, rollout: IntegralKLRollout) -> LossOutput:
        soft, ratio = None, self.config.ratio
        if isinstance(ratio, Auxiliary) and ratio.labels == "soft":
            soft = SoftLabels(self.student, rollout.states[:, -1], rollout.revealed[:, -1])
        loss, sums = self.ratio.loss(rollout.fake, rollout.sample, rollout.real, self.student.spec.mask_id, soft)
        count = self.count("critic", rollout)
        return LossOutput(loss, {name: (value, count) for name, value in sums.items()})

    def _student_loss(self, rollout: IntegralKLRollout) -> LossOutput:
        gradient, corrupted = self.config.gradient, rollout.fake == self.student.spec.mask_id
        reward = None if gradient.over_vocabulary else self.ratio.reward(rollout.fake, rollout.sample)
        divergence, regulariser = 0.0, 0.0  # (B,) each
        entropies, rewards = [], [] if reward is None else [reward[corrupted]]
        moves = rollout.states.shape[1]
        for state, revealed in zip(rollout.states.unbind(1), rollout.revealed.unbind(1), strict=True):
            # 1. where: the regularisers look at masks and random tokens, the gradient at what the move revealed
            masked = (state == self.student.spec.mask_id) | revealed
            move = Move(state, masked, revealed, corrupted)
            # 2. what needs the whole vocabulary
            estimates, penalties, state_entropies = self._at_masked_positions(rollout, move)
            # 3. rows
            divergence = divergence + gradient.row_losses(estimates, move, reward)
            regulariser = regulariser + row_sums(penalties, masked) / masked.sum(1).clamp(min=1) / moves
            entropies.append(state_entropies)
            if reward is None:
                rewards.append(-estimates.detach())
        return LossOutput(
            (rollout.weight * divergence + regulariser).sum(),
            {"entropy": _sum_count(torch.cat(entropies)), "reward": _sum_count(torch.cat(rewards))},
        )

    def _at_masked_positions(self, rollout: IntegralKLRollout, move: Move) -> tuple[Tensor, ...]:
        """All that needs the student's whole vocabulary, for the N positions of ``move.masked`` in chunks.

        Returns:
            the terms of a gradient over the vocabulary at the positions of ``move.used``, else (N,) log-probabilities
            of the drawn tokens; (N,) regularisers; (N,) entropies, detached.
        """
        gradient, regularisers, masked = self.config.gradient, self.config.regularisers, move.masked
        student, teacher = self.student.features_at(Canvas(move.state, masked), masked), None
        if regularisers.teacher_weight:
            with torch.no_grad():
                teacher = self.teacher.features_at(Canvas(move.state, masked), masked)
        theirs, auxiliary = None, None
        if isinstance(gradient, VocabularyGradient):
            assert isinstance(self.ratio, AuxiliaryRatio)
            theirs, auxiliary = self.ratio.features(rollout.fake, masked, gradient.auxiliary_share)

        def at_positions(
            student: Tensor, teacher: Tensor | None, theirs: Tensor | None, auxiliary: Tensor | None,
            used: Tensor, tokens: Tensor,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            log_probs = self.student.head(student)  # (n, V)
            if isinstance(gradient, VocabularyGradient):
                assert isinstance(self.ratio, AuxiliaryRatio)
                assert theirs is not None
                auxiliary = None if auxiliary is None else auxiliary[used]
                estimates = gradient.estimates(log_probs[used], self.ratio, theirs[used], auxiliary)
            else:
                estimates = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            with torch.no_grad():
                log_teacher = None if teacher is None else self.teacher.head(teacher)
            return estimates, *regularisers.at(log_probs, log_teacher)

        chunks = chunk_count(move.state.numel(), self.student.spec.vocabulary)
        tokens = rollout.sample[masked]
        return in_chunks(at_positions, chunks, student, teacher, theirs, auxiliary, move.used[masked], tokens)


def _sum_count(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach().sum(), torch.tensor(float(values.numel()))
