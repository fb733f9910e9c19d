"""Estimates of the density ratio between the student's and the teacher's corrupted marginals.

A ratio owns the critic phase: it trains a network on the student's samples and turns it into rewards
log q_θ − log q_ν, positive where the teacher finds a token likelier than the student makes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from objectives.divergences import expectation, log_ratio
from objectives.elbo import cross_entropy
from objectives.parts import Part
from objectives.tail import weighted
from students.adapters import AdapterConfig
from students.critic import Discriminator, auxiliary_denoiser
from teachers.canvas import Canvas
from teachers.capability import Capability
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser
from teachers.positions import at


def smoothed_cross_entropy(log_probs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1−ε) · −log p(target) + ε · mean_v −log p(v), the mean over columns that are not −∞.

    Args:
        log_probs: (N, V). targets: (N,).

    Returns:
        (N,), nats.
    """
    hit = cross_entropy(log_probs, targets)
    if smoothing == 0:
        return hit
    possible = log_probs > -torch.inf
    spread = -log_probs.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
    return (1 - smoothing) * hit + smoothing * spread


def soft_bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of ``logits`` with a soft target in [0, 1], elementwise, nats."""
    return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")


def clamped_log_odds(logits: Tensor, epsilon: float, clamp: float) -> Tensor:
    """log(p+ε) − log(1−p+ε) of p = σ(logits), clamped to ±``clamp`` (DiDi-Instruct, 2509.25035 [code])."""
    p = logits.sigmoid()
    return (torch.log(p + epsilon) - torch.log1p(epsilon - p)).clamp(-clamp, clamp)


@dataclass
class SoftLabels:
    """The student's law of the tokens that its last move drew, to train a critic on in place of the draws (2602.19066).

    Attributes:
        student: the network that drew.
        drawn: (B, L) where it drew. features: (B, L, H) what its head read there, 0 elsewhere.
    """

    student: Denoiser
    drawn: Tensor
    features: Tensor


class Ratio(ABC):
    """A density-ratio estimator: a network, its loss, and the reward it gives."""

    network: nn.Module

    def refresh(self) -> None:
        """Once an update, before any loss; nothing to do unless the network keeps running estimates."""
        return

    @abstractmethod
    def loss(
        self, fake: Canvas, sample: Tensor, real: Canvas | None = None, soft: SoftLabels | None = None,
        weights: Tensor | None = None, real_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Sum of the critic's loss over the open positions of ``fake``, and sums of metrics.

        Args:
            fake: the student's ``sample`` (B, L), corrupted: open where it is masked.
            real: real tokens, corrupted at the same time and positions, if the ratio needs them.
            soft: labels in place of the drawn tokens; for denoisers.
            weights, real_weights: (B, L) what each position of the sample and of the real row counts, see `Rollout`.
        """

    @abstractmethod
    def reward(self, fake: Canvas, sample: Tensor) -> Tensor:
        """(B, L) reward of the token at each position; meaningful on open positions of ``fake``."""


class AuxiliaryRatio(Ratio):
    """log p_θ − log p_ψ with ψ a denoiser trained on the student's samples (Di[M]O 2503.15457, IDLM 2602.19066)."""

    def __init__(
        self,
        teacher: Denoiser,
        start: Denoiser,
        label_smoothing: float,
        clamp: float,
        adapter: AdapterConfig | None = None,
    ):
        self.teacher = teacher
        self.network: Denoiser = auxiliary_denoiser(start, adapter)
        self.label_smoothing, self.clamp = label_smoothing, clamp

    def loss(
        self, fake: Canvas, sample: Tensor, real: Canvas | None = None, soft: SoftLabels | None = None,
        weights: Tensor | None = None, real_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Masked cross-entropy of the student's own samples, or of the law that it drew them from."""
        masked = fake.open

        def nats(features: Tensor, targets: Tensor, own: Tensor | None, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
            log_probs = self.network.head(features)
            plain = cross_entropy(log_probs.detach(), targets)
            if soft is None:
                return smoothed_cross_entropy(log_probs, targets, self.label_smoothing), plain
            assert own is not None
            assert drawn is not None
            with torch.no_grad():
                law = soft.student.head(own)
            # what was not drawn was shown: it is known, and has no law
            return torch.where(drawn, -expectation(law, log_probs), cross_entropy(log_probs, targets)), plain

        own, drawn = None, None
        if soft is not None:
            own, drawn = at(soft.features, masked), at(soft.drawn, masked)
        features = self.network.features(fake, masked)
        chunks = chunk_count(masked.numel(), self.network.spec.vocabulary)
        terms = in_chunks(nats, chunks, features, at(sample, masked), own, drawn)
        loss, plain = (weighted(term, weights, masked) for term in terms)
        return loss.sum(), {"nats": plain.sum()}

    @torch.no_grad()
    def features(self, fake: Canvas, select: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """What `table` reads: features of the teacher and of the auxiliary denoiser at N positions, (N, H) each.

        Args:
            share: of log q_ν that is the auxiliary denoiser's, which is not asked where it has none.
        """
        return self.teacher.features(fake, select), self.network.features(fake, select) if share > 0 else None

    @torch.no_grad()
    def table(self, theirs: Tensor, auxiliary: Tensor | None, own: Tensor | None = None, share: float = 0.0) -> Tensor:
        """(N, V) reward of every vocabulary entry at N positions, clamped; the mask column 0.

        Args:
            theirs, auxiliary: `features` at these positions.
            own: (N, V) the student's log-probabilities at the state it drew from. Tokens drawn in one move are
                independent, so where the corrupted sample lies between that state and the sample this is its exact
                conditional.
            share: of log q_ν that ``own`` stands for; the auxiliary denoiser for the rest [own].
        """
        teacher = self.teacher.head(theirs)
        reward = torch.zeros_like(teacher)
        if auxiliary is not None:
            reward = (1 - share) * log_ratio(teacher, self.network.head(auxiliary))
        if share > 0:
            assert own is not None
            reward = reward + share * log_ratio(teacher, own)
        return reward.clamp(-self.clamp, self.clamp)

    @torch.no_grad()
    def reward(self, fake: Canvas, sample: Tensor) -> Tensor:
        """The table read at the sampled tokens, on masked positions; 0 elsewhere."""
        masked = fake.open

        def rewards(theirs: Tensor, auxiliary: Tensor, tokens: Tensor) -> tuple[Tensor]:
            return (self.table(theirs, auxiliary).gather(-1, tokens[:, None]).squeeze(-1),)

        chunks = chunk_count(masked.numel(), self.teacher.spec.vocabulary)
        (reward,) = in_chunks(rewards, chunks, *self.features(fake, masked), at(sample, masked))
        return scatter(reward, masked)


class DiscriminatorRatio(Ratio):
    """A classifier between real and student tokens; its log-odds are the reward (DiDi-Instruct, 2509.25035)."""

    def __init__(
        self,
        start: Denoiser,
        blocks: int,
        targets: tuple[float, float],
        epsilon: float,
        clamp: float,
        adapter: AdapterConfig | None = None,
    ):
        self.network: Discriminator = Discriminator(start, blocks, adapter)
        self.real_target, self.fake_target = targets
        self.epsilon, self.clamp = epsilon, clamp

    def refresh(self) -> None:
        """Renew the spectral norms."""
        self.network.refresh()

    def loss(
        self, fake: Canvas, sample: Tensor, real: Canvas | None = None, soft: SoftLabels | None = None,
        weights: Tensor | None = None, real_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """(BCE(real, 0.9) + BCE(fake, 0.1)) / 2 on masked positions."""
        assert real is not None
        on_fake, on_real = (at(part, fake.open) for part in self.network(_stacked(fake, real)).chunk(2))
        bce_fake = weighted(soft_bce(on_fake, self.fake_target), weights, fake.open)
        bce_real = weighted(soft_bce(on_real, self.real_target), real_weights, fake.open)
        right = ((on_real > 0).sum() + (on_fake < 0).sum()) / 2
        return (bce_real + bce_fake).sum() / 2, {"accuracy": right.to(bce_fake)}

    @torch.no_grad()
    def reward(self, fake: Canvas, sample: Tensor) -> Tensor:
        """Clamped log-odds of being real. The discriminator sees the context of a masked token, not the token."""
        return clamped_log_odds(self.network(fake), self.epsilon, self.clamp)


def _stacked(one: Canvas, other: Canvas) -> Canvas:
    """The rows of one canvas, then those of the other, which differs from it in tokens alone."""
    rows = torch.arange(len(one), device=one.device).repeat(2)
    return replace(one.rows(rows, whole=True), tokens=torch.cat([one.tokens, other.tokens]))


class RatioPart(Part, ABC):
    """Which estimate.

    Attributes:
        over_vocabulary: it rewards every vocabulary entry, not the drawn token alone.
        needs_data: it compares the sample with rows of data.
        reward_clamp: of log-ratios, ±.
        adapter: the critic is this adapter on the teacher, and no block trains; None for a copy of its own.
    """

    over_vocabulary: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    reward_clamp: float = Field(default=5.0, gt=0)
    adapter: AdapterConfig | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it asks of the network that the critic starts as."""
        return frozenset()

    @property
    def trained_blocks(self) -> int | None:
        """How many of the critic's last blocks train; None for all."""
        return None

    @property
    def soft(self) -> bool:
        """Whether the critic learns the law that tokens were drawn from."""
        return False

    @abstractmethod
    def build(self, teacher: Denoiser, start: Denoiser) -> Ratio:
        """The ratio, whose network starts as ``start``."""


class Auxiliary(RatioPart):
    """An auxiliary denoiser, trained on the student's samples.

    Attributes:
        labels: it learns the tokens "sampled", or, "soft", the law they were drawn from (2602.19066).
        label_smoothing: of sampled labels.
    """

    over_vocabulary: ClassVar[bool] = True
    name: Literal["auxiliary"] = "auxiliary"
    labels: Literal["sampled", "soft"] = "sampled"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_softness(self) -> Auxiliary:
        if self.labels == "soft" and self.label_smoothing:
            raise ValueError(
                "labels 'soft' are the student's own probabilities; set label_smoothing to 0, or labels to 'sampled'"
            )
        return self

    @property
    def soft(self) -> bool:
        """As ``labels`` say."""
        return self.labels == "soft"

    def build(self, teacher: Denoiser, start: Denoiser) -> AuxiliaryRatio:
        """See `RatioPart.build`."""
        return AuxiliaryRatio(teacher, start, self.label_smoothing, self.reward_clamp, self.adapter)


class Discrimination(RatioPart):
    """A discriminator between the student's samples and real rows (2509.25035).

    Attributes:
        blocks: the last so many train.
        targets: labels of real and of the student's tokens.
        reward_epsilon: keeps log-odds finite.
    """

    needs_data: ClassVar[bool] = True
    name: Literal["discriminator"] = "discriminator"
    blocks: PositiveInt = 4  # [code]
    targets: tuple[float, float] = (0.9, 0.1)  # [code]
    reward_epsilon: float = Field(default=1e-6, gt=0)  # [code]
    reward_clamp: float = Field(default=8.0, gt=0)  # [code]

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Hidden states to read, and blocks to train the last few of, unless an adapter trains in their place."""
        return frozenset({"hidden states"} if self.adapter is not None else {"hidden states", "blocks"})

    @property
    def trained_blocks(self) -> int | None:
        """``blocks``, unless an adapter trains in their place."""
        return None if self.adapter is not None else self.blocks

    def build(self, teacher: Denoiser, start: Denoiser) -> DiscriminatorRatio:
        """See `RatioPart.build`."""
        return DiscriminatorRatio(
            start, self.blocks, self.targets, self.reward_epsilon, self.reward_clamp, self.adapter
        )


AnyRatio = Annotated[Auxiliary | Discrimination, Field(discriminator="name")]
