"""Integral KL between student and teacher: one family, three free choices, and our default among them.

D(q_ν‖q_θ) = ∫₀¹ ω(t) KL(q_ν(z_t) ‖ q_θ(z_t)) dt over the corrupted marginals of what the student and the teacher write.
The choices are the student's *rollout* (objectives/rollouts.py), the *ratio* that estimates log q_ν − log q_θ
(objectives/ratios.py) and the *gradient* estimator (objectives/gradients.py). Around them stand the *corruption* of the
sample, the law of its *time* and the *weight* of each (objectives/corruption.py), and *regularisers*.
DiDi-Instruct (2509.25035), Di[M]O (2503.15457) and IDLM (2602.19066) are points of the family, named in
objectives/didi_instruct.py, dimo.py and idlm.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from objectives.corruption import AnyCorruption, AnyWeight, ElboWeight, Independent, Times
from objectives.gradients import AnyGradient, Marginalised, Move, VocabularyGradient
from objectives.objective import (
    Distillation,
    LossOutput,
    Objective,
    ObjectiveConfig,
    Rollout,
    Surroundings,
    labels_of,
    one_prompt_a_group,
    rows_to_write,
)
from objectives.parts import completed
from objectives.ratios import AnyRatio, Auxiliary, AuxiliaryRatio, SoftLabels
from objectives.regularisers import Regularisers
from objectives.rollouts import AnyRollout, KStep, Start, recorded
from objectives.tail import weighted
from students.adapters import AdapterConfig
from students.rollout import Trajectory, redrawn
from teachers.canvas import Batch, Canvas
from teachers.capability import Capability
from teachers.chunks import chunk_count, in_chunks, row_sums
from teachers.host import columns_of
from teachers.positions import at
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

    steps_key: ClassVar[str] = "rollout.steps"
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
    def phases(self) -> tuple[str, ...]:
        """The critic, then the student."""
        return "critic", "student"

    @property
    def group(self) -> int:
        """The gradient's."""
        return self.gradient.group

    @property
    def most_steps(self) -> int:
        """The rollout's."""
        return self.rollout.most_steps

    @property
    def fewest_steps(self) -> int | None:
        """Of the rollout."""
        return self.rollout.fewest_steps

    @property
    def adapters(self) -> bool:
        """The critic's."""
        return self.ratio.adapter is not None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The critic's."""
        return self.ratio.capabilities

    @property
    def counted_blocks(self) -> int:
        """The discriminator's."""
        return self.ratio.trained_blocks or 0

    def check(self, run: Surroundings) -> None:
        """A rollout of the run's sampler must be one that anything can be drawn from."""
        super().check(run)
        if self.rollout.samples and (run.sampler.needs_critic or run.sampler.draw == "float32-gumbel"):
            raise ValueError(
                f"sampler {run.sampler.label!r} cannot make training rollouts; set it in evaluate.sampler, and another "
                "in sampler"
            )

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
        canvas: what was to be written.
        states, revealed: (B, M, L), see `students.rollout.Trajectory`; time: (B,) of the last state; next_time: (B,).
        sample: (B, L) the student's clean tokens.
        fake: the sample corrupted at t, open where it is masked.
        real: a real row, corrupted alike, for a discriminator; else None.
        labels: (B, L) the real row as it is, where ``real`` is given.
        weight: (B,) ω(t), over π(t) where importance is asked for.
        real_weights: (B, L) `weights` of the real row; those are the sample's.
        features: (B, L, H) what the student's head read where its last move drew, 0 elsewhere; for soft labels.
    """

    canvas: Canvas
    states: Tensor
    revealed: Tensor
    time: Tensor
    next_time: Tensor
    sample: Tensor
    fake: Canvas
    real: Canvas | None
    weight: Tensor
    labels: Tensor | None = None
    real_weights: Tensor | None = None
    features: Tensor | None = None

    @property
    def trajectory(self) -> Trajectory:
        """What the student did."""
        return Trajectory(self.states, self.revealed, self.sample, self.time, self.next_time)

    def moves(self) -> list[Move]:
        """The M moves, with what the corruption hides of them."""
        size = self.canvas.open.sum(1).clamp(min=1)
        states = recorded(self.states, self.revealed, self.time, self.canvas)
        moves = zip(states, columns_of(self.revealed), strict=True)
        return [Move(state, revealed, self.fake.open, size, self.weights) for state, revealed in moves]


class IntegralKL(Objective[IntegralKLRollout]):
    """The wiring of a rollout, a ratio and a gradient."""

    phases = ("critic", "student")

    def __init__(self, config: IntegralKLConfig, distillation: Distillation):
        self.config, self.group, self.uses = config, config.group, config.rollout.times_used
        self.teacher, self.student = distillation.teacher, distillation.student
        self.process, self.sampler, self.tail = distillation.process, distillation.sampler, distillation.tail
        self.ratio = config.ratio.build(self.teacher, distillation.start)
        if config.ratio.needs_data or config.rollout.needs_data:
            self.needs = "rows"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The critic, and the student."""
        return {"critic": self.ratio.network, "student": self.student}

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> IntegralKLRollout:
        """Let the student write, then corrupt what it wrote (and real rows alike)."""
        config, batch, rows = self.config, one_prompt_a_group(batch, self.group), len(batch)
        self.ratio.refresh()
        drawn = config.time.draw(rows, self.group, randomness)
        start = Start(self.student, self.process, batch.canvas, self.sampler, batch.labels, drawn, randomness)
        trajectory = config.rollout.draw(start)
        if config.corruption.redraws and config.rollout.timed:  # the first made the state
            drawn = config.time.draw(rows, self.group, randomness)
        labels = labels_of(batch) if config.ratio.needs_data else None
        return self._corrupted(batch.canvas, trajectory, labels, drawn, randomness)

    @torch.no_grad()
    def again(self, rollout: IntegralKLRollout, randomness: RowStreams) -> IntegralKLRollout:
        """Another sample from the same states, and its corruption."""
        self.ratio.refresh()
        trajectory = redrawn(self.student, rollout.canvas, rollout.trajectory, randomness)
        drawn = self.config.time.draw(len(rollout), self.group, randomness)
        return self._corrupted(rollout.canvas, trajectory, rollout.labels, drawn, randomness)

    def _corrupted(
        self, canvas: Canvas, trajectory: Trajectory, labels: Tensor | None, drawn: Tensor, randomness: RowStreams
    ) -> IntegralKLRollout:
        """The sample of a trajectory, and real rows, masked alike.

        Args:
            labels: (B, L) of the real rows, if there are any. drawn: (B,) times from π.
        """
        config = self.config
        # 1. at what time, and where
        t = config.corruption.time(trajectory, drawn, config.time)
        hidden = config.corruption.hidden(canvas, trajectory, t, self.process, randomness)
        # 2. the sample, and real rows
        fake = self._masked(canvas, trajectory.sample, hidden, t)
        real, real_weights = None, None
        if labels is not None:
            real = self._masked(canvas, labels, hidden, t)
            real_weights = self.tail.weights(labels, canvas.open)
        # 3. how much each counts
        weight = config.weight.at(t, config.time, self.process).float()
        # 4. of what law the sample is
        features = trajectory.features if config.ratio.soft else None
        features = None if features is None else _spread(features, trajectory.revealed[:, -1])
        return IntegralKLRollout(
            canvas, trajectory.states, trajectory.revealed, trajectory.time, trajectory.next_time, trajectory.sample,
            fake, real, weight, labels, real_weights, features,
            weights=self.tail.weights(trajectory.sample, canvas.open),
        )  # fmt: skip

    def _masked(self, canvas: Canvas, tokens: Tensor, hidden: Tensor, t: Tensor) -> Canvas:
        return replace(canvas, tokens=torch.where(hidden, self.student.spec.mask_id, tokens), open=hidden, time=t)

    def outline(self, canvas: Canvas) -> IntegralKLRollout:
        """See `Objective.outline`."""
        moves, time = self.config.rollout.moves, torch.ones(len(canvas), dtype=torch.float64, device=canvas.device)
        states, revealed = (x[:, None].repeat(1, moves, 1) for x in (canvas.tokens, canvas.open))
        real = canvas if self.config.ratio.needs_data else None
        with torch.no_grad():
            features = self.student.features(canvas) if self.config.ratio.soft else None
        return IntegralKLRollout(
            canvas, states, revealed, time, time, canvas.tokens, canvas, real, time.float(), features=features
        )

    def count(self, phase: str, rollout: IntegralKLRollout) -> Tensor:
        """Masked tokens for the critic, rows for the student."""
        return rollout.fake.open.sum() if phase == "critic" else rows_to_write(rollout.canvas)

    def loss(self, phase: str, rollout: IntegralKLRollout) -> LossOutput:
        """The critic's loss, or the gradient estimator's."""
        return self._critic_loss(rollout) if phase == "critic" else self._student_loss(rollout)

    def _critic_loss(self, rollout: IntegralKLRollout) -> LossOutput:
        soft = None
        if rollout.features is not None:
            soft = SoftLabels(self.student, rollout.revealed[:, -1], rollout.features)
        loss, sums = self.ratio.loss(
            rollout.fake, rollout.sample, rollout.real, soft, rollout.weights, rollout.real_weights
        )
        count = self.count("critic", rollout)
        return LossOutput(loss, {name: (value, count) for name, value in sums.items()})

    def _student_loss(self, rollout: IntegralKLRollout) -> LossOutput:
        gradient, moves, weights = self.config.gradient, rollout.moves(), rollout.weights
        reward = None if gradient.over_vocabulary else self.ratio.reward(rollout.fake, rollout.sample)
        masked = rollout.fake.open
        entropies, rewards = [], [] if reward is None else [weighted(at(reward, masked), weights, masked)]
        divergence, regulariser = 0.0, 0.0  # (B,) each
        for move, read in zip(moves, self._of_ratio(rollout, moves), strict=True):
            # 1. what needs the whole vocabulary
            estimates, penalties, state_entropies = self._at_open_positions(rollout, move, *read)
            # 2. rows: the gradient at what the move wrote, the regularisers at all that is open
            open_ = move.state.open
            divergence = divergence + gradient.row_losses(estimates, move, reward)
            penalties = row_sums(weighted(penalties, weights, open_), open_) / open_.sum(1).clamp(min=1)
            regulariser = regulariser + penalties / len(moves)
            # 3. what is logged
            entropies.append(weighted(state_entropies, weights, open_))
            if reward is None:
                rewards.append(weighted(-estimates.detach(), weights, move.used))
        loss = (rollout.weight * divergence + regulariser).sum()
        return LossOutput(loss, {"entropy": _sum_count(torch.cat(entropies)), "reward": _sum_count(torch.cat(rewards))})

    def _of_ratio(self, rollout: IntegralKLRollout, moves: list[Move]) -> list[tuple[Tensor | None, Tensor | None]]:
        """What a gradient over the vocabulary reads of teacher and critic, at the open positions of each move's state.

        Both read the corrupted sample, which is the same for all moves, and what a move writes the first one had open.
        """
        gradient, first = self.config.gradient, moves[0].state.open
        if not isinstance(gradient, VocabularyGradient):
            return [(None, None)] * len(moves)
        assert isinstance(self.ratio, AuxiliaryRatio)
        theirs, auxiliary = self.ratio.features(rollout.fake, first, gradient.auxiliary_share)
        later = [at(move.state.open, first) for move in moves[1:]]
        parts = [(at(theirs, part), None if auxiliary is None else at(auxiliary, part)) for part in later]
        return [(theirs, auxiliary), *parts]

    def _at_open_positions(
        self, rollout: IntegralKLRollout, move: Move, theirs: Tensor | None, auxiliary: Tensor | None
    ) -> tuple[Tensor, ...]:
        """All that needs the student's whole vocabulary, for the N open positions of a move's state in chunks.

        Args:
            theirs, auxiliary: (N, H) of `_of_ratio`.

        Returns:
            the terms of a gradient over the vocabulary at the positions of ``move.used``, else (N,) log-probabilities
            of the drawn tokens; (N,) regularisers; (N,) entropies, detached.
        """
        gradient, regularisers, open_ = self.config.gradient, self.config.regularisers, move.state.open
        student, teacher = self.student.features_at(move.state, open_), None
        if regularisers.teacher_weight:
            with torch.no_grad():
                teacher = self.teacher.features_at(move.state, open_)

        def at_positions(
            student: Tensor, teacher: Tensor | None, theirs: Tensor | None, auxiliary: Tensor | None,
            used: Tensor, tokens: Tensor,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            log_probs = self.student.head(student)  # (n, V)
            if isinstance(gradient, VocabularyGradient):
                assert isinstance(self.ratio, AuxiliaryRatio)
                assert theirs is not None
                auxiliary = None if auxiliary is None else at(auxiliary, used)
                estimates = gradient.estimates(at(log_probs, used), self.ratio, at(theirs, used), auxiliary)
            else:
                estimates = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            with torch.no_grad():
                log_teacher = None if teacher is None else self.teacher.head(teacher)
            return estimates, *regularisers.at(log_probs, log_teacher)

        chunks = chunk_count(open_.numel(), self.student.spec.vocabulary)
        tokens = at(rollout.sample, open_)
        return in_chunks(at_positions, chunks, student, teacher, theirs, auxiliary, at(move.used, open_), tokens)


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """(N, H) values at the N True positions of (B, L) ``where``, zeros elsewhere: (B, L, H); the host does not wait."""
    number = where.flatten().cumsum(0).view(where.shape) - 1  # of the True positions, in order
    return values[number.clamp(min=0)].masked_fill_(~where[..., None], 0.0)


def _sum_count(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach().sum(), torch.tensor(float(values.numel()))
