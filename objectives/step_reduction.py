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

from objectives.divergences import kl
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
from objectives.tail import weighted
from objectives.verdicts import Verifier, VerifierConfig
from objectives.verifiers import at_the_end, state_before
from students.adaptive import AdaptiveTrajectory, adaptive, mean_inverse_distance
from students.planner import PlannedDenoiser, add_planner, commit_log_prob, summary
from students.samplers import Planner, Threshold
from students.samplers.planner import planned_logits
from students.student import twin
from teachers.canvas import Batch, Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser
from teachers.positions import positions
from teachers.randomness import RowStreams

TOLERANCE = 0.02  # of perplexity at equal entropy, where steps are reduced [own]
CALIBRATION_ROWS = 64  # trajectories of the start that measure its passes [own]


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
    def unrounded(self) -> bool:
        """The law of the tokens stays as it is loaded where the planner alone trains."""
        return self.trains == "planner"

    def check(self, run: Surroundings) -> None:
        """What is trained is a sampler's passes, and what is measured: those of another one stay as they were."""
        super().check(run)
        sampler = run.sampler
        if not isinstance(sampler, Planner | Threshold):
            raise ValueError(
                f"sampler is {sampler.name!r}, but step_reduction trains one that decides how many passes a row takes; "
                "set sampler=planner, or sampler=threshold"
            )
        if isinstance(sampler, Threshold) and self.trains == "planner":
            raise ValueError(
                "sampler 'threshold' has no planner to train; set objective.trains=all, or sampler=planner"
            )
        drawn = sampler.exact or (sampler.draw == "greedy" and self.trains == "planner")
        if not (sampler.blind and drawn and sampler.plain):
            raise ValueError(
                f"sampler {sampler.label!r} is not blind to what it draws, or does not draw exactly at temperature 1, "
                "which step_reduction needs; leave its confidence, draw, temperature, top_k and top_p out. Where the "
                "planner alone is trained, draw may be greedy"
            )
        if isinstance(sampler.block_length, int) and sampler.block_length < run.length:
            self._check_blocks(sampler)
        if run.measured != sampler:
            raise ValueError(
                f"evaluate.sampler is {run.measured.label!r}, but the passes of {sampler.label!r} are trained; leave "
                "evaluate.sampler out"
            )

    def _check_blocks(self, sampler: Planner | Threshold) -> None:
        """A planner is trained to choose from all that is open, and ``steps`` are those of a whole trajectory."""
        if isinstance(sampler, Planner):
            raise ValueError(
                f"sampler {sampler.label!r} plans blocks, but step_reduction trains a planner of whole rows; leave "
                "sampler.block_length out"
            )
        if sampler.budget == "block":
            raise ValueError(
                "sampler.budget is 'block', but step_reduction counts the passes of a row; leave it out, and let "
                "objective.steps be those of all blocks together"
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
        self.teacher, self.process, self.canvases = distillation.teacher, distillation.process, distillation.canvases
        self.student, self.sampler, self.tail = distillation.student, distillation.sampler, distillation.tail
        if isinstance(self.sampler, Planner):
            if not isinstance(self.student, PlannedDenoiser):
                self.student = add_planner(self.student, config.steps, confidence=config.start_confidence)
            self.student.inner.requires_grad_(config.trains == "all")
        self.target = self.reference = twin(self.student)
        self.progress = 0.0
        self.verifier = Verifier(config, distillation, self.student, self.first)
        self.needs = self.verifier.needs
        self._start: tuple[float, float] | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student with its planner, its start, and the verifier that it trains or loads."""
        return {"student": self.student, "target": self.first, **self.verifier.networks}

    @property
    def first(self) -> Denoiser:
        """The student's start."""
        assert self.target is not None
        return self.target

    @property
    def planner_alone(self) -> bool:
        """Whether the tokens' law stays as it is."""
        return self.config.trains == "planner"

    def begin(self, update: int, updates: int) -> bool:
        """Where the schedules of λ and the surrogate are."""
        self.progress = update / updates
        return False

    def _trajectory(
        self, network: Denoiser, canvas: Canvas, randomness: RowStreams, keep_features: bool = False
    ) -> AdaptiveTrajectory:
        # what the tokens are drawn with is not the planner's doing: shared, it is noise that the baseline takes away
        together = self.group if self.planner_alone else 1
        steps = self.config.steps
        return adaptive(network, self.process, canvas, self.sampler, steps, randomness, together, keep_features)

    def start(self, device: torch.device) -> tuple[float, float]:
        """Mean passes of the start, and mean of the surrogate; measured once, the same on every process."""
        if self._start is None:
            rows = -(-CALIBRATION_ROWS // self.group) * self.group
            path = self._trajectory(self.first, self.canvases(rows, device), RowStreams(0, (), range(rows), device))
            lengths = mean_inverse_distance(path.commits, path.steps)
            self._start = float(path.steps.double().mean()), float(lengths.mean())
        return self._start

    def cost(self, path: AdaptiveTrajectory) -> Tensor:
        """(B, M) what passes cost, 1 a row as long as the start's: a surrogate at the end, later each pass its own."""
        mean_steps, mean_surrogate = self.start(path.states.device)
        number = torch.arange(path.commits.shape[1], device=path.states.device)
        share = ramp(self.progress, self.config.surrogate)
        cost = share * (number < path.steps[:, None]).double() / mean_steps
        if share < 1:
            surrogate = mean_inverse_distance(path.commits, path.steps) / mean_surrogate
            cost = cost + (1 - share) * at_the_end(surrogate, path.steps, cost.shape[1])
        return cost

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> StepReductionRollout:
        """Trajectories, verdicts and advantages."""
        config, batch = self.config, one_prompt_a_group(batch, self.group)
        canvas = batch.canvas
        # 1. what the student writes, and what that is worth
        path = self._trajectory(self.student, canvas, randomness, keep_features=self.planner_alone)
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
            part, moved, _ = self._pass(rollout, n)
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
        if self.planner_alone:
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
            part, moved, away = self._pass(rollout, n)
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

    def _pass(self, rollout: StepReductionRollout, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """One recorded pass of the rows that made it, as float64.

        Returns:
            (R,) which rows; (R,) log-probability of what the pass drew; (R,) mean KL to the start at open positions.
        """
        config = self.config
        state = state_before(rollout.path, rollout.canvas, n, self.process)
        # where passes are collective, finished rows go along
        made = state.open.any(1) | self.student.collective
        part = positions(made)
        if len(part) == 0:
            return part, torch.zeros(0), torch.zeros(0)
        state, commit = state.rows_where(made), rollout.commits[part, n]
        open_, start = state.open, None
        # 1. what the heads read: (N, H)
        if rollout.features is not None:  # nothing that trains is behind them
            features = rollout.features[part, n][open_]
        else:
            features = self.student.features(state, open_)
        if config.trains == "all" and config.anchor_kl:
            with torch.no_grad():
                start = self.first.features(state, open_)

        def at_positions(features: Tensor, start: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            log_probs = self.student.head(features)
            hit = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            if start is None:
                return hit, summary(log_probs), torch.zeros_like(hit)
            with torch.no_grad():
                theirs = self.first.head(start)
            return hit, summary(log_probs), kl(log_probs, theirs)

        # 2. what needs the whole vocabulary: (N,), (N, 2), (N,)
        chunks = chunk_count(rollout.sample.numel(), self.student.spec.vocabulary)
        hit, summaries, away = in_chunks(at_positions, chunks, features, start, rollout.sample[part][open_])
        # 3. the log-probability of tokens and of positions: (R,)
        log_prob = torch.zeros(len(part), dtype=torch.float64, device=open_.device)
        if config.trains == "all":
            log_prob = log_prob + (scatter(hit, open_) * commit).sum(1)
        if isinstance(self.sampler, Planner) and n + 1 < config.steps:  # the last pass has no choice
            logits = planned_logits(self.student, features, summaries, open_, config.steps, state.real)
            logits = logits + self.sampler.bias
            log_prob = log_prob + commit_log_prob(logits, open_, commit, self.student.repulsion)
        away = weighted(scatter(away, open_).double(), None if rollout.weights is None else rollout.weights[part])
        return part, log_prob, away.sum(1) / open_.sum(1).clamp(min=1)
