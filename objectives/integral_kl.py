"""Integral KL between student and teacher: one family, three free choices, and our default among them.

D(q_ν‖q_θ) = ∫₀¹ ω(t) KL(q_ν(z_t) ‖ q_θ(z_t)) dt over the corrupted marginals of what the student and the teacher write.
The choices are the student's *rollout* (students/rollout.py), the *ratio* that estimates log q_ν − log q_θ
(objectives/ratios.py) and the *gradient* estimator (objectives/gradients.py). DiDi-Instruct (2509.25035), Di[M]O
(2503.15457) and IDLM (2602.19066) are points of the family, named in objectives/didi_instruct.py, dimo.py and idlm.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from objectives.divergences import entropy, jeffreys, kl
from objectives.gradients import (
    grouped_advantage,
    grouped_token_advantage,
    marginalised,
    per_token,
    score_function,
    through_logits,
)
from objectives.objective import Distillation, LossOutput, Objective, ObjectiveConfig, Rollout
from objectives.ratios import AuxiliaryRatio, DiscriminatorRatio, Ratio, SoftLabels
from students.adapters import AdapterConfig
from students.rollout import Trajectory, from_data, k_step, one_move, two_moves
from students.samplers import SAMPLERS
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, row_sums
from teachers.randomness import RowStreams, beta, uniform

OVER_VOCABULARY = ("marginalised", "logit")
"""Gradients that need a reward for every vocabulary entry, which only the auxiliary denoiser gives."""


class IntegralKLConfig(ObjectiveConfig):
    """Our default: the student's own K-step states, an auxiliary denoiser, marginalised over the vocabulary.

    Attributes:
        rollout: "one_move", "two_moves", "k_step", or "data": from real rows masked to a time t ~ π (2602.19066).
        steps: the step counts K that "k_step" draws from [own].
        order: in which "k_step" reveals positions, "random" or "dilated": that of the sampler it will be used with
            [own].
        random_share: of "one_move"'s canvas that starts with random tokens instead of masks (2503.15457).
        ratio: "auxiliary" or "discriminator".
        gradient: "marginalised", "logit" (both auxiliary only), "per_token" or "score_function".
        jeffreys: β of gradient "logit": (1−β) forward + β reverse KL.
        corruption: how the sample is corrupted before critic and teacher see it. "independent": at t ~ π. "coupled": at
            the time of the state it was drawn from (2509.25035). "nested": only the newly drawn tokens are masked, so
            that the context always holds what the state held [own].
        horizon: of "nested": how many of the sampler's next steps the time may lie ahead of the state's; None for all
            that are left. With 1 the context is what the very next step might have revealed [own].
        pi: whole (a, b) of the Beta law of τ (two_moves, data), of t (independent) or of the part of the step (nested).
        clamp_time: t and τ stay within.
        omega: ω(t): "elbo" = −α'/(1−α), clamped to ``clamp_omega``, or "uniform" = 1.
        importance: divide ω by the density of π.
        exact_share: the part of log q_ν taken from the student's own conditional, which "nested" corruption knows
            exactly; the auxiliary denoiser estimates the rest. 0 leaves all to the auxiliary [own].
        reward_clamp: of log-ratios, ±.
        advantage_clamp, group_size: of grouped reward normalisation; 1 for marginalised gradients, which need none.
        label_smoothing: of the auxiliary denoiser's targets.
        critic_targets: the auxiliary denoiser learns the tokens "sampled", or, "soft", the law they were drawn from.
        discriminator_blocks, discriminator_targets: last blocks that train; soft labels of real and fake.
        critic_adapter: the critic is this adapter on the teacher, and no block trains; None for a copy of its own.
        teacher_kl, teacher_divergence: weight and kind of the divergence to the teacher at the student's states.
        entropy_bonus: weight of the student's entropy at its states.
    """

    phases: ClassVar = ("critic", "student")
    name: Literal["integral_kl"] = "integral_kl"  # type: ignore[assignment]
    rollout: Literal["one_move", "two_moves", "k_step", "data"] = "k_step"
    steps: list[PositiveInt] = Field([8, 16], min_length=1)
    order: Literal["random", "dilated"] = "random"
    random_share: float = Field(0.0, ge=0, lt=1)
    ratio: Literal["auxiliary", "discriminator"] = "auxiliary"
    gradient: Literal["marginalised", "logit", "per_token", "score_function"] = "marginalised"
    jeffreys: float = 0.0
    corruption: Literal["independent", "coupled", "nested"] = "independent"
    horizon: int | None = Field(None, ge=1)
    pi: tuple[PositiveInt, PositiveInt] = (1, 1)
    clamp_time: tuple[float, float] = (0.02, 0.98)
    omega: Literal["elbo", "uniform"] = "elbo"
    clamp_omega: tuple[float, float] = (0.1, 10.0)
    importance: bool = False
    exact_share: float = Field(0.0, ge=0, le=1)
    reward_clamp: float = Field(5.0, gt=0)
    reward_epsilon: float = Field(1e-6, gt=0)
    advantage_clamp: float = Field(3.0, gt=0)
    group_size: PositiveInt = 1
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    critic_targets: Literal["sampled", "soft"] = "sampled"
    discriminator_blocks: PositiveInt = 4
    discriminator_targets: tuple[float, float] = (0.9, 0.1)
    critic_adapter: AdapterConfig | None = None
    teacher_kl: float = Field(0.0, ge=0)
    teacher_divergence: Literal["kl", "jeffreys"] = "kl"
    entropy_bonus: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _cross_checks(self) -> IntegralKLConfig:
        if self.gradient in OVER_VOCABULARY and self.ratio != "auxiliary":
            raise ValueError(
                f"gradient {self.gradient!r} needs a reward for every vocabulary entry; set ratio to 'auxiliary', or "
                "gradient to 'per_token' or 'score_function'"
            )
        if self.gradient not in OVER_VOCABULARY and self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; gradient {self.gradient!r} needs groups of at least 2")
        if self.corruption == "coupled" and self.rollout == "one_move":
            raise ValueError("corruption 'coupled' needs an intermediate state; set rollout to 'two_moves' or 'k_step'")
        if self.exact_share and (self.corruption != "nested" or self.gradient != "marginalised"):
            raise ValueError(
                f"exact_share is {self.exact_share}, but the student's conditional is exact only for nested corruption "
                "and marginalised gradients; set those, or exact_share to 0"
            )
        if self.random_share and self.rollout != "one_move":
            raise ValueError(
                f"random_share is {self.random_share}, but rollout {self.rollout!r} has no random tokens; set rollout "
                "to 'one_move', or random_share to 0"
            )
        if self.critic_targets == "soft" and (self.ratio != "auxiliary" or self.label_smoothing):
            raise ValueError(
                "critic_targets 'soft' are the student's own probabilities; set ratio to 'auxiliary' and "
                "label_smoothing to 0, or critic_targets to 'sampled'"
            )
        if self.order != "random" and self.rollout != "k_step":
            raise ValueError(
                f"order is {self.order!r}, but only rollout 'k_step' has one; set it, or order to 'random'"
            )
        low, high = self.clamp_time
        if not 0 < low < high <= 1:
            raise ValueError(f"clamp_time is {self.clamp_time}; give 0 < low < high ≤ 1")
        return self

    @property
    def group(self) -> int:
        """Rows that must stay in one micro-batch."""
        return self.group_size

    @property
    def most_steps(self) -> int:
        """Of ``steps``."""
        return max(self.steps)

    @property
    def adapters(self) -> bool:
        """The critic's."""
        return self.critic_adapter is not None

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
        real: (B, L) a real row corrupted at the same t and positions, or None.
        weight: (B,) ω(t), or ω(t)/π(t).
    """

    states: Tensor
    revealed: Tensor
    sample: Tensor
    fake: Tensor
    real: Tensor | None
    weight: Tensor


def beta_density(t: Tensor, a: int, b: int) -> Tensor:
    """Density of Beta(a, b) at t."""
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return torch.exp(constant + (a - 1) * torch.log(t) + (b - 1) * torch.log1p(-t))


class IntegralKL(Objective):
    """The wiring of a rollout, a ratio and a gradient."""

    phases: ClassVar = ("critic", "student")

    def __init__(self, config: IntegralKLConfig, distillation: Distillation):
        self.config, self.group = config, config.group
        self.teacher, self.student = distillation.teacher, distillation.student
        self.process, self.length = distillation.process, distillation.length
        self.ratio: Ratio
        if config.ratio == "auxiliary":
            self.ratio = AuxiliaryRatio(
                self.teacher, distillation.start, config.label_smoothing, config.reward_clamp, config.critic_adapter
            )
        else:
            self.ratio = DiscriminatorRatio(
                distillation.start,
                config.discriminator_blocks,
                config.discriminator_targets,
                config.reward_epsilon,
                config.reward_clamp,
                config.critic_adapter,
            )
        if config.ratio == "discriminator" or config.rollout == "data":
            self.needs = "rows"

    def network(self, phase: str) -> nn.Module:
        """The critic, or the student."""
        return self.student if phase == "student" else self.ratio.network

    @torch.no_grad()
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> IntegralKLRollout:
        """Let the student write, then corrupt what it wrote (and real rows alike)."""
        self.ratio.refresh()
        drawn = self._times(rows, randomness)
        trajectory = self._trajectory(real, drawn, rows, randomness)
        if self.config.corruption == "independent" and self.config.rollout in ("two_moves", "data"):
            drawn = self._times(rows, randomness)  # the first made the state
        t, masked = self._corrupt(trajectory, drawn, randomness)
        mask_id = self.student.spec.mask_id
        weight = torch.ones_like(t)
        if self.config.omega == "elbo":
            weight = self.process.elbo_weight(t).clamp(*self.config.clamp_omega)
        if self.config.importance:
            weight = weight / beta_density(t, *self.config.pi)
        return IntegralKLRollout(
            trajectory.states,
            trajectory.revealed,
            trajectory.sample,
            torch.where(masked, mask_id, trajectory.sample),
            torch.where(masked, mask_id, real) if self.config.ratio == "discriminator" and real is not None else None,
            weight.float(),
        )

    def _times(self, rows: int, randomness: RowStreams) -> Tensor:
        """(B,) draws from π, one for a whole group: a baseline over different noise levels would mix them."""
        drawn = beta(randomness, rows, *self.config.pi).clamp(*self.config.clamp_time)
        return drawn.view(-1, self.group)[:, :1].expand(-1, self.group).reshape(-1)

    def _corrupt(self, trajectory: Trajectory, drawn: Tensor, randomness: RowStreams) -> tuple[Tensor, Tensor]:
        """The time (B,) and the positions (B, L) at which the sample is masked."""
        t, possible = drawn, torch.ones_like(trajectory.revealed[:, -1])
        kept = self.process.alpha(t)
        if self.config.corruption == "coupled":
            t = trajectory.time.clamp(*self.config.clamp_time)
            kept = self.process.alpha(t)
        elif self.config.corruption == "nested":
            ahead = trajectory.time
            if self.config.horizon is not None:
                ahead = torch.minimum(ahead, self.config.horizon * (trajectory.time - trajectory.next_time))
            t = (trajectory.time - drawn * ahead).clamp(min=self.config.clamp_time[0] * trajectory.time)
            kept = self.process.reveal_probability(trajectory.time, t)
            possible = trajectory.revealed[:, -1]
        return t, possible & (uniform(randomness, *possible.shape) >= kept[:, None])

    def _trajectory(self, real: Tensor | None, tau: Tensor, rows: int, randomness: RowStreams) -> Trajectory:
        canvas = Canvas.blank(rows, self.length, self.student.spec.mask_id, randomness.device)
        if self.config.rollout == "one_move":
            return one_move(self.student, canvas, randomness, self.config.random_share)
        if self.config.rollout == "data":
            assert real is not None
            return from_data(self.student, self.process, real, canvas, tau, randomness)
        if self.config.rollout == "two_moves":
            return two_moves(self.student, self.process, canvas, tau, randomness)
        sampler = SAMPLERS["dilated" if self.config.order == "dilated" else "ancestral"]()
        return k_step(self.student, self.process, canvas, sampler, self.config.steps, randomness)

    def count(self, phase: str, rollout: IntegralKLRollout) -> Tensor:  # type: ignore[override]
        """Masked tokens for the critic, rows for the student."""
        if phase == "critic":
            return (rollout.fake == self.student.spec.mask_id).sum()
        return torch.tensor(len(rollout.sample))

    def loss(self, phase: str, rollout: IntegralKLRollout) -> LossOutput:  # type: ignore[override]
        """The critic's loss, or the gradient estimator's."""
        if phase == "critic":
            count = self.count(phase, rollout)
            soft = None
            if self.config.critic_targets == "soft":
                soft = SoftLabels(self.student, rollout.states[:, -1], rollout.revealed[:, -1])
            loss, sums = self.ratio.loss(rollout.fake, rollout.sample, rollout.real, self.student.spec.mask_id, soft)
            return LossOutput(loss, {name: (value, count) for name, value in sums.items()})
        return self._student_loss(rollout)

    def _student_loss(self, rollout: IntegralKLRollout) -> LossOutput:
        config, mask_id = self.config, self.student.spec.mask_id
        corrupted = rollout.fake == mask_id
        reward = None if config.gradient in OVER_VOCABULARY else self.ratio.reward(rollout.fake, rollout.sample)
        divergence, log_prob, regulariser = 0.0, 0.0, 0.0  # (B,) each
        entropies, rewards = [], []
        moves, length = rollout.states.shape[1:]
        for m in range(moves):
            z, revealed = rollout.states[:, m], rollout.revealed[:, m]
            # the regularisers look at all of them, the gradient at those the move revealed: masks, and random tokens
            masked = (z == mask_id) | revealed
            used = revealed & corrupted
            estimates, penalties, state_entropies = self._at_masked_positions(rollout, z, masked, used)
            if config.gradient in OVER_VOCABULARY:
                divergence = divergence + row_sums(estimates, used) / length
                rewards.append(-estimates.detach())
            elif config.gradient == "per_token":
                advantage = grouped_token_advantage(reward, corrupted, self.group, config.advantage_clamp)
                terms = per_token(estimates[used[masked]], advantage[used])
                divergence = divergence + row_sums(terms, used) / length
            else:
                log_prob = log_prob + row_sums(estimates[revealed[masked]], revealed)
            regulariser = regulariser + row_sums(penalties, masked) / masked.sum(1).clamp(min=1) / moves
            entropies.append(state_entropies)
        if reward is not None:
            rewards.append(reward[corrupted])
        if config.gradient == "score_function":
            mean_reward = (reward * corrupted).sum(1) / corrupted.sum(1).clamp(min=1)
            advantage = grouped_advantage(mean_reward, self.group, config.advantage_clamp)
            divergence = score_function(log_prob, advantage)
        return LossOutput(
            (rollout.weight * divergence + regulariser).sum(),
            {"entropy": _sum_count(torch.cat(entropies)), "reward": _sum_count(torch.cat(rewards))},
        )

    def _at_masked_positions(
        self, rollout: IntegralKLRollout, z: Tensor, masked: Tensor, used: Tensor
    ) -> tuple[Tensor, ...]:
        """All that needs the student's whole vocabulary, for the N positions of ``masked`` in chunks.

        Returns:
            the terms of a gradient over the vocabulary at the positions of ``used``, else (N,) log-probabilities of the
            drawn tokens; (N,) regularisers; (N,) entropies, detached.
        """
        config = self.config
        student, teacher, theirs, auxiliary = self.student.features_at(Canvas(z, masked), masked), None, None, None
        if config.teacher_kl:
            with torch.no_grad():
                teacher = self.teacher.features_at(Canvas(z, masked), masked)
        if config.gradient in OVER_VOCABULARY:
            theirs, auxiliary = self.ratio.features(rollout.fake, masked, config.exact_share)  # type: ignore[attr-defined]

        def at_positions(
            student: Tensor, teacher: Tensor | None, theirs: Tensor | None, auxiliary: Tensor | None,
            used: Tensor, tokens: Tensor,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            log_probs = self.student.head(student)
            if theirs is None:
                estimates = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            else:
                here, theirs = log_probs[used], theirs[used]
                auxiliary = None if auxiliary is None else auxiliary[used]
                if config.gradient == "logit":
                    estimates = through_logits(
                        here,
                        self.ratio.logit_coefficients(theirs, auxiliary, config.jeffreys),  # type: ignore[attr-defined]
                    )
                else:
                    table = self.ratio.table(theirs, auxiliary, here.detach(), config.exact_share)  # type: ignore[attr-defined]
                    estimates = marginalised(here, table)
            return estimates, *self._regularise(log_probs, teacher)

        chunks = chunk_count(z.numel(), self.student.spec.vocabulary)
        return in_chunks(
            at_positions, chunks, student, teacher, theirs, auxiliary, used[masked], rollout.sample[masked]
        )

    def _regularise(self, log_probs: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
        """Divergence to the teacher, given by its features, minus the entropy bonus; and the entropy: (N,) each."""
        config = self.config
        with torch.set_grad_enabled(config.entropy_bonus > 0 and torch.is_grad_enabled()):
            entropies = entropy(log_probs)
        terms = -config.entropy_bonus * entropies
        if teacher is not None:
            with torch.no_grad():
                theirs = self.teacher.head(teacher)
            divergence = jeffreys if config.teacher_divergence == "jeffreys" else kl
            terms = terms + config.teacher_kl * divergence(theirs, log_probs)
        return terms, entropies.detach()


def _sum_count(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach().sum(), torch.tensor(float(values.numel()))
