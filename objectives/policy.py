"""What the passes of a student draw, and how likely that is: the policy of step reduction, and what its passes cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from objectives.divergences import kl
from objectives.objective import Distillation
from objectives.tail import weighted
from objectives.verifiers import at_the_end, state_before
from students.adaptive import AdaptiveTrajectory, adaptive, mean_inverse_distance
from students.planner import commit_log_prob, summary
from students.samplers import Planner, Sampler, Threshold
from students.samplers.planner import planned_logits
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser
from teachers.randomness import RowStreams

if TYPE_CHECKING:
    from objectives.step_reduction import StepReductionConfig

CALIBRATION_ROWS = 64  # trajectories of the start that measure its passes [own]


def check_policy(sampler: Sampler, length: int, planner_alone: bool) -> None:
    """Refuse a sampler whose passes can not be trained so.

    Args:
        length: L, tokens of a row. planner_alone: whether the law of the tokens stays as it is.

    Raises:
        ValueError: what it is, and what to set.
    """
    if not isinstance(sampler, Planner | Threshold):
        raise ValueError(
            f"sampler is {sampler.name!r}, but step_reduction trains one that decides how many passes a row takes; "
            "set sampler=planner, or sampler=threshold"
        )
    if isinstance(sampler, Threshold) and planner_alone:
        raise ValueError("sampler 'threshold' has no planner to train; set objective.trains=all, or sampler=planner")
    drawn = sampler.exact or (sampler.draw == "greedy" and planner_alone)
    if not (sampler.blind and drawn and sampler.plain):
        raise ValueError(
            f"sampler {sampler.label!r} is not blind to what it draws, or does not draw exactly at temperature 1, "
            "which step_reduction needs; leave its confidence, draw, temperature, top_k and top_p out. Where the "
            "planner alone is trained, draw may be greedy"
        )
    if isinstance(sampler.block_length, int) and sampler.block_length < length:
        _check_blocks(sampler)


def _check_blocks(sampler: Planner | Threshold) -> None:
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


class PassTerms(NamedTuple):
    """One recorded pass of the rows that made it.

    Attributes:
        rows: (R,) which rows.
        log_prob: (R,) float64, of what the pass drew.
        away: (R,) float64 mean KL to the start at open positions.
    """

    rows: Tensor
    log_prob: Tensor
    away: Tensor


class Policy:
    """A student whose passes decide what to commit.

    Args:
        student: with its planner. first: its start.
    """

    def __init__(self, config: StepReductionConfig, distillation: Distillation, student: Denoiser, first: Denoiser):
        self.config, self.student, self.first = config, student, first
        self.sampler, self.process = distillation.sampler, distillation.process

    def trajectory(
        self, network: Denoiser, canvas: Canvas, randomness: RowStreams, keep_features: bool = False
    ) -> AdaptiveTrajectory:
        """What a network writes on a canvas: the student, or its start."""
        # what the tokens are drawn with is not the planner's doing: shared, it is noise that the baseline takes away
        together = self.config.group if self.config.planner_alone else 1
        steps = self.config.steps
        return adaptive(network, self.process, canvas, self.sampler, steps, randomness, together, keep_features)

    def terms(self, path: AdaptiveTrajectory, canvas: Canvas, n: int, weights: Tensor | None = None) -> PassTerms:
        """Pass ``n`` of recorded trajectories.

        Args:
            canvas: what they were written on. weights: (B, L), see `objectives.objective.Rollout`.
        """
        config = self.config
        state = state_before(path, canvas, n, self.process)
        # where passes are collective, finished rows go along
        rows = (state.open.any(1) | self.student.collective).nonzero().squeeze(1)
        if len(rows) == 0:
            return PassTerms(rows, torch.zeros(0), torch.zeros(0))
        state, commit = state.rows(rows), path.commits[rows, n]
        open_, start = state.open, None
        # 1. what the heads read: (N, H); it is kept where nothing that trains is behind it
        kept = path.features
        features = self.student.features(state, open_) if kept is None else kept[rows, n][open_]
        if not config.planner_alone and config.anchor_kl:
            with torch.no_grad():
                start = self.first.features(state, open_)
        # 2. what needs the whole vocabulary: (N,), (N, 2), (N,)
        hit, summaries, away = self._at_positions(features, start, path.sample[rows][open_], path.sample.numel())
        # 3. the log-probability of tokens and of positions: (R,)
        log_prob = torch.zeros(len(rows), dtype=torch.float64, device=open_.device)
        if not config.planner_alone:
            log_prob = log_prob + (scatter(hit, open_) * commit).sum(1)
        if isinstance(self.sampler, Planner) and n + 1 < config.steps:  # the last pass has no choice
            logits = planned_logits(self.student, features, summaries, open_, config.steps, state.real)
            logits = logits + self.sampler.bias
            log_prob = log_prob + commit_log_prob(logits, open_, commit, self.student.repulsion)
        away = weighted(scatter(away, open_).double(), None if weights is None else weights[rows])
        return PassTerms(rows, log_prob, away.sum(1) / open_.sum(1).clamp(min=1))

    def _at_positions(
        self, features: Tensor, start: Tensor | None, tokens: Tensor, positions: int
    ) -> tuple[Tensor, ...]:
        """Of N positions, in chunks: log-probabilities of tokens (N,), summaries (N, 2), and KL to the start (N,).

        Args:
            features, start: (N, H) of student and start; without a start the KL is 0. positions: of all rows, B · L.
        """

        def of_chunk(features: Tensor, start: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            log_probs = self.student.head(features)
            hit = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            if start is None:
                return hit, summary(log_probs), torch.zeros_like(hit)
            with torch.no_grad():
                theirs = self.first.head(start)
            return hit, summary(log_probs), kl(log_probs, theirs)

        return in_chunks(of_chunk, chunk_count(positions, self.student.spec.vocabulary), features, start, tokens)


class PassCost:
    """What passes cost, a trajectory as long as the start's costing 1: first by a surrogate, later each pass its own.

    Args:
        distillation: whose canvases the start writes on, to be measured.
    """

    def __init__(self, policy: Policy, distillation: Distillation):
        self.policy, self.canvases = policy, distillation.canvases
        self._start: tuple[float, float] | None = None

    def start(self, device: torch.device) -> tuple[float, float]:
        """Mean passes of the start, and mean of the surrogate; measured once, the same on every process."""
        if self._start is None:
            group, first = self.policy.config.group, self.policy.first
            rows = -(-CALIBRATION_ROWS // group) * group
            path = self.policy.trajectory(first, self.canvases(rows, device), RowStreams(0, (), range(rows), device))
            lengths = mean_inverse_distance(path.commits, path.steps)
            self._start = float(path.steps.double().mean()), float(lengths.mean())
        return self._start

    def of(self, path: AdaptiveTrajectory, share: float) -> Tensor:
        """(B, M) of each pass.

        Args:
            share: of the true count; the rest is the surrogate's, which is known at the end of a trajectory.
        """
        mean_steps, mean_surrogate = self.start(path.states.device)
        number = torch.arange(path.commits.shape[1], device=path.states.device)
        cost = share * (number < path.steps[:, None]).double() / mean_steps
        if share < 1:
            surrogate = mean_inverse_distance(path.commits, path.steps) / mean_surrogate
            cost = cost + (1 - share) * at_the_end(surrogate, path.steps, cost.shape[1])
        return cost
