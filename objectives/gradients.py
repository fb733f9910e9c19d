"""Estimators of the gradient of an integral KL, as losses whose gradient it is: pure functions, then the config's part.

All take the student's log-probabilities at the recorded states and a reward that is a constant. Each is tested against
the exact gradient by enumeration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from objectives.corruption import CorruptionPart
from objectives.divergences import expectation, log_ratio
from objectives.parts import Part
from objectives.ratios import AuxiliaryRatio, RatioPart
from objectives.tail import weighted
from teachers.canvas import Canvas
from teachers.chunks import row_sums
from teachers.host import derived
from teachers.positions import at


def marginalised(log_probs: Tensor, reward_table: Tensor) -> Tensor:
    """−Σ_v p_ν(v) r(v): the expectation over the token taken exactly (2503.15457, 2602.19066).

    A masked position's reward depends on the token drawn there only through the table's column, so no sampling noise of
    the token is left.

    Args:
        log_probs: (N, V), differentiable. reward_table: (N, V).

    Returns:
        (N,).
    """
    return -expectation(log_probs, reward_table)


def through_logits(log_probs: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_v sg[g(v)] · log p_ν(v): the loss whose gradient in the student's logits is g, if g sums to 0 (2503.15457).

    Args:
        log_probs: (N, V), differentiable. coefficients: (N, V), g.

    Returns:
        (N,).
    """
    never = log_probs == -torch.inf
    return (coefficients * log_probs.masked_fill(never, 0.0)).sum(-1)


def jeffreys_coefficients(log_auxiliary: Tensor, log_teacher: Tensor, beta: float, clamp: float) -> Tensor:
    """g = (1−β) (p_ψ − p_θ) + β p_ψ (d − Σ p_ψ d), d = log p_ψ − log p_θ: Di[M]O's generalised Jeffreys (2503.15457).

    The gradient of (1−β) KL(p_θ‖p_ψ) + β KL(p_ψ‖p_θ) in the logits of p_ψ; it sums to 0, and is 0 on the mask column.

    Args:
        log_auxiliary, log_teacher: (N, V). beta: any number; Jeffreys' divergence for 0 ≤ β ≤ 1. clamp: of d, ±.
    """
    auxiliary = log_auxiliary.exp()
    forward = auxiliary - log_teacher.exp()
    if beta == 0:
        return forward
    difference = log_ratio(log_auxiliary, log_teacher).clamp(-clamp, clamp)
    return (1 - beta) * forward + beta * auxiliary * (difference - (auxiliary * difference).sum(-1, keepdim=True))


def per_token(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """−A · log p_ν(x): the score function with one reward a token. All (N,)."""
    return -advantage * log_prob


def score_function(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """−A · Σ log p_ν over a row's revealed tokens: the score function of whole rows (2509.25035, eq. for ∇L).

    Args:
        log_prob: (B,) summed over the positions that the moves revealed, not divided by length. advantage: (B,).
    """
    return -advantage * log_prob


def clipped_ratio(log_prob: Tensor, before: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What weighs the score function of draws made by an earlier policy: p_now / p_then, and 0 where PPO is clipped.

    The gradient of −A · w · log p, w this weight, is that of −min(ρ A, clamp(ρ, 1 ± ε) A), ρ = p_now / p_then
    (1707.06347): no draw is made likelier, or less likely, than 1 ± ε times what it was.

    Args:
        log_prob, before: (N,) of the drawn now and when it was drawn. advantage: (N,). clip: ε.

    Returns:
        (N,), a constant.
    """
    ratio = (log_prob.detach() - before).exp()
    return ratio.masked_fill(torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip), 0.0)


def grouped_advantage(reward: Tensor, group: int, clamp: float, epsilon: float = 1e-8) -> Tensor:
    """(R − mean) / (std + ε) within groups of consecutive rows, clamped (grouped reward normalisation, 2509.25035).

    Args:
        reward: (B,), B a multiple of ``group``. The standard deviation is that of the sample (n − 1).
    """
    groups = reward.view(-1, group)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + epsilon)).clamp(-clamp, clamp).view(-1)


def grouped_token_advantage(reward: Tensor, used: Tensor, group: int, clamp: float, epsilon: float = 1e-8) -> Tensor:
    """The same for one reward a token: mean and standard deviation over the ``used`` tokens of a group.

    Args:
        reward: (B, L). used: (B, L) bool, or how much of each token is.
    """
    rows, length = reward.shape
    reward_group, used_group = (x.view(-1, group * length) for x in (reward, used.to(reward)))
    n = used_group.sum(1, keepdim=True).clamp(min=2)
    mean = (reward_group * used_group).sum(1, keepdim=True) / n
    variance = ((reward_group - mean).square() * used_group).sum(1, keepdim=True) / (n - 1)
    return ((reward_group - mean) / (variance.sqrt() + epsilon)).clamp(-clamp, clamp).view(rows, length)


def advantage_to_go(reward: Tensor, steps: Tensor, group: int) -> Tensor:
    """What a row gets from a pass on, minus the mean of that over those others of its group that make this pass.

    What a pass draws has no influence on rewards before it, nor on other rows: the policy gradient stays unbiased.

    Args:
        reward: (B, M), 0 after a row's last pass. steps: (B,) passes.
    """
    to_go = reward.flip(1).cumsum(1).flip(1)
    makes = (torch.arange(reward.shape[1], device=steps.device) < steps[:, None]).to(reward)
    to_go, makes = (x.view(-1, group, x.shape[1]) for x in (to_go * makes, makes))
    others, count = (x.sum(1, keepdim=True) - x for x in (to_go, makes))
    return ((to_go - others / count.clamp(min=1)) * makes).view_as(reward)


@dataclass(frozen=True)
class Move:
    """One recorded move of B rows, and what the corruption hides of it.

    Attributes:
        state: the canvas before it; the regularisers look at all that is open.
        revealed: (B, L) bool, what it wrote. corrupted: (B, L) bool, where the sample is masked again.
        size: (B,) positions that a row's rollout writes in all, at least 1.
        weights: (B, L) what each counts, see `Rollout`.
    """

    state: Canvas
    revealed: Tensor
    corrupted: Tensor
    size: Tensor
    weights: Tensor | None = None

    @cached_property
    def used(self) -> Tensor:
        """What was revealed and is masked again: where a reward says something of this move."""
        return derived(torch.logical_and, self.revealed, self.corrupted)


class GradientPart(Part, ABC):
    """Which estimator.

    Attributes:
        over_vocabulary: it takes a reward for every vocabulary entry, not for the drawn token alone.
    """

    over_vocabulary: ClassVar[bool]

    @property
    def group(self) -> int:
        """Consecutive rows that are each other's baseline."""
        return 1

    def check(self, ratio: RatioPart, corruption: CorruptionPart) -> None:
        """Refuse parts that it has no meaning with.

        Raises:
            ValueError: the remedy.
        """

    @abstractmethod
    def row_losses(self, estimates: Tensor, move: Move, reward: Tensor | None) -> Tensor:
        """(B,) the loss of a move.

        Args:
            estimates: (N,) over the vocabulary at the positions of ``move.used``, else the log-probabilities of the
                drawn tokens at the open ones of ``move.state``.
            reward: (B, L) of the drawn tokens; None over the vocabulary.
        """


class VocabularyGradient(GradientPart):
    """Estimators that read a reward for every vocabulary entry."""

    over_vocabulary: ClassVar[bool] = True

    def check(self, ratio: RatioPart, corruption: CorruptionPart) -> None:
        """The ratio must give them."""
        if not ratio.over_vocabulary:
            raise ValueError(
                f"gradient {self.name!r} needs a reward for every vocabulary entry, which ratio {ratio.name!r} does "
                "not give; set ratio to 'auxiliary', or gradient to 'per_token' or 'score_function'"
            )

    @property
    def auxiliary_share(self) -> float:
        """The part of log q_ν that is the auxiliary denoiser's."""
        return 1.0

    @abstractmethod
    def estimates(self, log_probs: Tensor, ratio: AuxiliaryRatio, theirs: Tensor, auxiliary: Tensor | None) -> Tensor:
        """(N,) terms at N positions.

        Args:
            log_probs: (N, V) the student's, differentiable.
            theirs, auxiliary: `AuxiliaryRatio.features` there.
        """

    def row_losses(self, estimates: Tensor, move: Move, reward: Tensor | None) -> Tensor:
        """Their sum over a row, divided by how many positions it writes."""
        return row_sums(weighted(estimates, move.weights, move.used), move.used) / move.size


class Marginalised(VocabularyGradient):
    """The expectation over the token, exactly (2503.15457, 2602.19066).

    Attributes:
        exact_share: the part of log q_ν taken from the student's own conditional, which nested corruption knows
            exactly; the auxiliary denoiser estimates the rest. 0 leaves all to the auxiliary.
    """

    name: Literal["marginalised"] = "marginalised"
    exact_share: float = Field(default=0.0, ge=0, le=1)  # [own]

    @property
    def auxiliary_share(self) -> float:
        """What ``exact_share`` leaves."""
        return 1 - self.exact_share

    def check(self, ratio: RatioPart, corruption: CorruptionPart) -> None:
        """The student's own conditional must be exact where it is used."""
        super().check(ratio, corruption)
        if self.exact_share and corruption.name != "nested":
            raise ValueError(
                f"gradient.exact_share is {self.exact_share}, but the student's conditional is exact only for nested "
                "corruption; set corruption to 'nested', or exact_share to 0"
            )

    def estimates(self, log_probs: Tensor, ratio: AuxiliaryRatio, theirs: Tensor, auxiliary: Tensor | None) -> Tensor:
        """`marginalised`."""
        return marginalised(log_probs, ratio.table(theirs, auxiliary, log_probs.detach(), self.exact_share))


class ThroughLogits(VocabularyGradient):
    """The gradient of a divergence in the auxiliary's logits, put into the student's (Di[M]O, 2503.15457).

    Attributes:
        jeffreys: β: (1−β) forward + β reverse KL.
    """

    name: Literal["logit"] = "logit"
    jeffreys: float = 0.0  # [code] "Jeffreys_0.", the forward KL; 1 is the reverse KL

    def estimates(self, log_probs: Tensor, ratio: AuxiliaryRatio, theirs: Tensor, auxiliary: Tensor | None) -> Tensor:
        """`through_logits`."""
        assert auxiliary is not None
        with torch.no_grad():
            log_auxiliary, log_teacher = ratio.network.head(auxiliary), ratio.teacher.head(theirs)
            coefficients = jeffreys_coefficients(log_auxiliary, log_teacher, self.jeffreys, ratio.clamp)
        return through_logits(log_probs, coefficients)


class GroupedGradient(GradientPart):
    """Score functions of the drawn tokens, with grouped reward normalisation (2509.25035).

    Attributes:
        group_size: rows that are each other's baseline.
        advantage_clamp: of normalised rewards, ±.
    """

    over_vocabulary: ClassVar[bool] = False
    group_size: int = Field(default=4, ge=2)  # [paper]
    advantage_clamp: float = Field(default=3.0, gt=0)  # [code]

    @property
    def group(self) -> int:
        """``group_size``."""
        return self.group_size


class PerToken(GroupedGradient):
    """One normalised reward a token [own]."""

    name: Literal["per_token"] = "per_token"

    def row_losses(self, estimates: Tensor, move: Move, reward: Tensor | None) -> Tensor:
        """`per_token`, summed over a row and divided by how many positions it writes."""
        assert reward is not None
        counted = weighted(move.corrupted.to(reward), move.weights)
        advantage = grouped_token_advantage(reward, counted, self.group, self.advantage_clamp)
        terms = per_token(at(estimates, at(move.used, move.state.open)), at(advantage, move.used))
        return row_sums(weighted(terms, move.weights, move.used), move.used) / move.size


class ScoreFunction(GroupedGradient):
    """One normalised reward a row, not divided by what it writes (2509.25035)."""

    name: Literal["score_function"] = "score_function"

    def row_losses(self, estimates: Tensor, move: Move, reward: Tensor | None) -> Tensor:
        """`score_function`."""
        assert reward is not None
        mean = (weighted(reward, move.weights) * move.corrupted).sum(1) / move.corrupted.sum(1).clamp(min=1)
        advantage = grouped_advantage(mean, self.group, self.advantage_clamp)
        # weights are of the reward: the law of the row is that of all its tokens
        written = at(estimates, at(move.revealed, move.state.open))
        return score_function(row_sums(written, move.revealed), advantage)


AnyGradient = Annotated[Marginalised | ThroughLogits | PerToken | ScoreFunction, Field(discriminator="name")]
