"""On-policy step reduction: a student learns to need fewer passes (Seed Diffusion, 2508.02193).

Minimise E_{τ~p_ν}[ λ|τ| − V(τ[end]) ] by the log-derivative trick: |τ| passes, V a verifier of the finished row. The
policy is what each pass draws: which positions to commit (a Bernoulli planner, as dUltra 2512.21446, or a confidence
threshold, which draws nothing) and their tokens. Length alone was unstable to minimise [paper]: it starts as a
surrogate, |τ| ∝ E_{i,j}[1 / d_Lev(τ[i], τ[j])], and becomes the true count. The paper discloses neither the schedule,
baseline, anchor, nor the verifier: what is tagged [open] is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from objectives.gradients import advantage_to_go, clipped_ratio, grouped_advantage, score_function
from objectives.objective import (
    Distillation,
    LossOutput,
    Objective,
    Rollout,
    Surroundings,
    one_prompt_a_group,
    rows_to_write,
)
from objectives.policy import PassCost, Policy, check_policy
from objectives.verdicts import Verifier, VerifierConfig
from students.adaptive import AdaptiveTrajectory
from students.planner import PlannedDenoiser, add_planner
from students.samplers import Planner
from students.student import twin
from teachers.canvas import Batch, Canvas
from teachers.denoiser import Denoiser
from teachers.randomness import RowStreams

TOLERANCE = 0.02  # of perplexity at equal entropy, where steps are reduced [own]


class StepReductionConfig(VerifierConfig):
    """Every default with its origin; those of V are in `VerifierConfig`.

    The policy is the run's ``sampler``: "planner" [paper] of dUltra, a head that is put on the student unless it has
    one, or "threshold".

    Attributes:
        trains: "planner", the head alone, the tokens' law staying as it is, or "all".
        steps: M, no trajectory has more passes; a new planner starts at the ancestral rate of so many.
        start_confidence: a probability, at which a new planner starts as a soft threshold, see
            `students.planner.PlannerHead`; None: it starts at the rate alone.
        length_weight: λ: what the start's mean number of passes costs, in units of V.
        length_warmup: part of the run over which λ rises from 0.
        surrogate: part of the run over which the surrogate of |τ| gives way to |τ| itself; 0 for none.
        group_size: rows that are each other's baseline.
        advantage: "leave_one_out", what follows a pass minus the mean of that over the others of the group, unbiased;
            or "grouped", of the whole trajectory, divided by the group's standard deviation and clamped, as GRPO.
        uses: steps that each network makes of one rollout. From the second on, what a pass drew is weighted by how much
            likelier the policy makes it now, `objectives.gradients.clipped_ratio`. An update then is as many steps.
        ratio_clip: ε of these weights.
        anchor_kl: weight of KL(student ‖ its start) of the tokens at visited states, where tokens are trained.
    """

    name: Literal["step_reduction"] = "step_reduction"
    trains: Literal["planner", "all"] = "planner"  # [own]
    steps: int = Field(default=16, ge=2)  # [own]
    start_confidence: float | None = Field(default=None, gt=0, lt=1)  # [own]
    length_weight: float = Field(default=0.3, ge=0)  # [open]
    length_warmup: float = Field(default=0.1, ge=0, le=1)  # [open]
    surrogate: float = Field(default=0.3, ge=0, le=1)  # [open]
    group_size: int = Field(default=8, ge=2)  # [open]
    advantage: Literal["leave_one_out", "grouped"] = "leave_one_out"  # [own]
    advantage_clamp: float = Field(default=3.0, gt=0)  # [code] of DiDi-Instruct
    uses: PositiveInt = 1  # [own]
    ratio_clip: float = Field(default=0.2, gt=0)  # [paper] 1707.06347
    anchor_kl: float = Field(default=0.1, ge=0)  # [open]

    @model_validator(mode="before")
    @classmethod
    def _policy_is_the_sampler(cls, values: Any) -> Any:
        for key, new in (("policy", "sampler"), ("threshold", "sampler.threshold")):
            if isinstance(values, dict) and key in values:
                raise ValueError(f"{key} is now the run's {new}; write sampler: {{name: planner}} or threshold there")
        return values

    @property
    def group(self) -> int:
        """Rows that must stay in one micro-batch."""
        return self.group_size

    @property
    def most_steps(self) -> int:
        """``steps``."""
        return self.steps

    @property
    def fewest_steps(self) -> int:
        """``steps``."""
        return self.steps

    @property
    def planner_alone(self) -> bool:
        """Whether the law of the tokens stays as it is."""
        return self.trains == "planner"

    @property
    def unrounded(self) -> bool:
        """The law of the tokens stays as it is loaded where the planner alone trains."""
        return self.planner_alone

    def check(self, run: Surroundings) -> None:
        """What is trained is a sampler's passes, and what is measured: those of another one stay as they were."""
        super().check(run)
        sampler = run.sampler
        check_policy(sampler, run.length, self.planner_alone)
        if run.measured != sampler:
            raise ValueError(
                f"evaluate.sampler is {run.measured.label!r}, but the passes of {sampler.label!r} are trained; leave "
                "evaluate.sampler out"
            )

    def ranks(self, figures: Mapping[str, float], reference: Mapping[str, float] | None) -> float | None:
        """The fewest passes, with a perplexity of at most 1 + `TOLERANCE` times the start's, each at its entropy."""
        assert reference is not None
        good = figures["relative_perplexity"] <= (1 + TOLERANCE) * reference["relative_perplexity"]
        return figures["nfe"] if good else None

    def build(self, distillation: Distillation) -> StepReduction:
        """See `ObjectiveConfig.build`."""
        return StepReduction(self, distillation)


@dataclass
class StepReductionRollout(Rollout):
    """Trajectories and what they are worth.

    Attributes:
        canvas: what was to be written.
        states, commits, sample, steps, features: see `students.adaptive.AdaptiveTrajectory`.
        advantage: (B, M) of what each pass drew. verdict: (B,) V.
        fake, real: the sample and a real row, corrupted alike, for a discriminator; else None.
        real_weights: (B, L) `weights` of the real row; those are the sample's.
        log_prob: (B, M) of what each pass drew, when it was drawn, if the rollout is used more than once.
    """

    canvas: Canvas
    states: Tensor
    commits: Tensor
    sample: Tensor
    steps: Tensor
    advantage: Tensor
    verdict: Tensor
    fake: Canvas | None = None
    real: Canvas | None = None
    features: Tensor | None = None
    real_weights: Tensor | None = None
    log_prob: Tensor | None = None

    @property
    def path(self) -> AdaptiveTrajectory:
        """The trajectories alone."""
        return AdaptiveTrajectory(self.states, self.commits, self.sample, self.steps, self.features)


def ramp(progress: float, until: float) -> float:
    """0 at the start, 1 from ``until`` on, both parts of a run."""
    return min(1.0, progress / until) if until > 0 else 1.0


class StepReduction(Objective[StepReductionRollout]):
    """The wiring of policy, verifier and length.

    `target` is the student's start, never refilled: anchor, and what lengths are measured against.
    """

    def __init__(self, config: StepReductionConfig, distillation: Distillation):
        self.config, self.group, self.phases, self.uses = config, config.group, config.phases, config.uses
        self.teacher, self.student, self.tail = distillation.teacher, distillation.student, distillation.tail
        if isinstance(distillation.sampler, Planner):
            if not isinstance(self.student, PlannedDenoiser):
                self.student = add_planner(self.student, config.steps, confidence=config.start_confidence)
            self.student.inner.requires_grad_(config.trains == "all")
        self.target = self.reference = twin(self.student)
        self.progress = 0.0
        self.verifier = Verifier(config, distillation, self.student, self.first)
        self.needs = self.verifier.needs
        self.policy = Policy(config, distillation, self.student, self.first)
        self.pass_cost = PassCost(self.policy, distillation)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student with its planner, its start, and the verifier that it trains or loads."""
        return {"student": self.student, "target": self.first, **self.verifier.networks}

    @property
    def first(self) -> Denoiser:
        """The student's start."""
        assert self.target is not None
        return self.target

    def begin(self, update: int, updates: int) -> bool:
        """Where the schedules of λ and the surrogate are."""
        self.progress = update / updates
        return False

    def cost(self, path: AdaptiveTrajectory) -> Tensor:
        """(B, M) what passes cost at this update."""
        return self.pass_cost.of(path, ramp(self.progress, self.config.surrogate))

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> StepReductionRollout:
        """Trajectories, verdicts and advantages."""
        config, batch = self.config, one_prompt_a_group(batch, self.group)
        canvas = batch.canvas
        # 1. what the student writes, and what that is worth
        path = self.policy.trajectory(self.student, canvas, randomness, keep_features=config.planner_alone)
        weights = self.tail.weights(path.sample, canvas.open)
        verdict = self.verifier.verdict(batch, path, randomness, weights)
        # 2. what its passes cost
        reward = verdict.worth - config.length_weight * ramp(self.progress, config.length_warmup) * self.cost(path)
        # 3. each pass beside those of the other rows of the group
        if config.advantage == "grouped":
            advantage = grouped_advantage(reward.sum(1), self.group, config.advantage_clamp)[:, None].expand_as(reward)
        else:
            advantage = advantage_to_go(reward, path.steps, self.group)
        rollout = StepReductionRollout(
            canvas, path.states, path.commits, path.sample, path.steps, advantage, verdict.worth.sum(1), verdict.fake,
            verdict.real, path.features, verdict.real_weights, weights=weights,
        )  # fmt: skip
        return replace(rollout, log_prob=self._log_prob(rollout)) if config.uses > 1 else rollout

    def again(self, rollout: StepReductionRollout, randomness: RowStreams) -> StepReductionRollout:
        """The same: its loss weighs what was drawn by how likely that has become."""
        return rollout

    def _log_prob(self, rollout: StepReductionRollout) -> Tensor:
        """(B, M) of what each pass drew, 0 where a row made none."""
        log_prob = torch.zeros_like(rollout.advantage)
        for n in range(self.config.steps):
            part, moved, _ = self.policy.terms(rollout.path, rollout.canvas, n)
            if len(part) == 0:
                break
            log_prob[part, n] = moved
        return log_prob

    def outline(self, canvas: Canvas) -> StepReductionRollout:
        """See `Objective.outline`."""
        passes, rows = self.config.steps, len(canvas)
        states, commits = (x[:, None].repeat(1, passes, 1) for x in (canvas.tokens, canvas.open))
        steps, zeros = torch.full((rows,), passes), torch.zeros(rows, passes, dtype=torch.float64)
        compared = None if self.verifier.ratio is None else canvas
        features = None
        if self.config.planner_alone:
            with torch.no_grad():
                features = self.student.features(canvas)[:, None].repeat(1, passes, 1, 1)
        return StepReductionRollout(
            canvas, states, commits, canvas.tokens, steps, zeros, zeros[:, 0], compared, compared, features
        )

    def count(self, phase: str, rollout: StepReductionRollout) -> Tensor:
        """Masked tokens for the critic, rows for the student."""
        if phase == "critic":
            assert rollout.fake is not None
            return rollout.fake.open.sum()
        return rows_to_write(rollout.canvas)

    def loss(self, phase: str, rollout: StepReductionRollout) -> LossOutput:
        """The discriminator's loss, or −A · log p_ν(τ) and the anchor."""
        return self._critic_loss(rollout) if phase == "critic" else self._student_loss(rollout)

    def _critic_loss(self, rollout: StepReductionRollout) -> LossOutput:
        assert self.verifier.ratio is not None
        assert rollout.fake is not None
        loss, sums = self.verifier.ratio.loss(
            rollout.fake, rollout.sample, rollout.real, weights=rollout.weights, real_weights=rollout.real_weights
        )
        return LossOutput(loss, {name: (value, self.count("critic", rollout)) for name, value in sums.items()})

    def _student_loss(self, rollout: StepReductionRollout) -> LossOutput:
        rows = rows_to_write(rollout.canvas)
        gain, anchor, clipped = (torch.zeros_like(rollout.verdict) for _ in range(3))
        for n in range(self.config.steps):
            part, moved, away = self.policy.terms(rollout.path, rollout.canvas, n, rollout.weights)
            if len(part) == 0:
                break
            advantage = rollout.advantage[part, n]
            if rollout.log_prob is not None:
                ratio = clipped_ratio(moved, rollout.log_prob[part, n], advantage, self.config.ratio_clip)
                advantage = ratio * advantage
                clipped = clipped.index_add(0, part, (ratio == 0).double() / rollout.steps[part].clamp(min=1))
            gain = gain.index_add(0, part, score_function(moved, advantage))
            anchor = anchor.index_add(0, part, away / rollout.steps[part].clamp(min=1))
        loss = gain + self.config.anchor_kl * anchor
        metrics = {"steps": rollout.steps.double(), "verdict": rollout.verdict, "anchor": anchor}
        if rollout.log_prob is not None:
            metrics["clipped"] = clipped
        return LossOutput(loss.sum(), {name: (value.detach().sum(), rows) for name, value in metrics.items()})
