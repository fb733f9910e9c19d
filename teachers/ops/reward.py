"""Head, log-softmax and marginalised reward in one, over chunks of the vocabulary: nothing is (N, V).

Three laws meet in each column: the student's p, the teacher's and the auxiliary denoiser's. A first look at all logits
gives their normalisers, a second one the expectation, and the backward pass looks a third time: less memory for more
matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from teachers.ops.head import LinearHead


class Read(NamedTuple):
    """A head, and the (N, H) features that it reads."""

    head: LinearHead
    features: Tensor

    def logits(self, columns: slice) -> Tensor:
        """(N, C)."""
        return self.head.logits(self.features, columns)

    def normaliser(self) -> Tensor:
        """(N, 1) log Σ exp of all logits."""
        chunks = self.head.chunks(len(self.features))
        return torch.stack([self.logits(columns).logsumexp(-1) for columns in chunks], -1).logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class Rewards:
    """What rewards a token: how much likelier the teacher finds it than the student's samples show it.

    Attributes:
        teacher: of log q_θ. auxiliary: of log q_ψ.
        share: of log q_ν that the student's own law stands for; the auxiliary denoiser for the rest.
        clamp: of rewards, ±.
    """

    teacher: Read
    auxiliary: Read
    share: float
    clamp: float

    def normalisers(self) -> tuple[Tensor, Tensor]:
        """The teacher's and the auxiliary denoiser's."""
        return self.teacher.normaliser(), self.auxiliary.normaliser()

    def of(self, own: Tensor, columns: slice, normalisers: tuple[Tensor, Tensor]) -> Tensor:
        """(N, C) rewards of some columns, where the student's log-probabilities are ``own``."""
        teacher, auxiliary = (
            read.logits(columns) - normaliser
            for read, normaliser in zip((self.teacher, self.auxiliary), normalisers, strict=True)
        )
        reward = (1 - self.share) * _difference(teacher, auxiliary)
        if self.share:
            reward = reward + self.share * _difference(teacher, own)
        return reward.clamp(-self.clamp, self.clamp)


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """one − other, 0 where both are −∞."""
    return torch.where(one == other, 0.0, one - other)


def head_and_reward(student: Read, rewards: Rewards) -> Tensor:
    """Σ_v p(v) r(v), the expectation of a reward that is a constant: (N,), float32 or finer.

    Differentiable in the student's features and in its head's weight and bias. It is minus the marginalised loss of
    the whole table of rewards, and is for heads that do not fit: on a CPU more products take longer than they save.
    """
    return _HeadAndReward.apply(student.features, student.head.weight, student.head.offset, rewards)


class _HeadAndReward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, offset: Tensor, rewards: Rewards) -> Tensor:
        student = Read(LinearHead(weight, offset), features)
        normaliser, theirs = student.normaliser(), rewards.normalisers()
        expected = torch.zeros_like(normaliser)
        for columns in student.head.chunks(len(features)):
            own = student.logits(columns) - normaliser
            expected += (own.exp() * rewards.of(own, columns, theirs)).sum(-1, keepdim=True)
        ctx.save_for_backward(features, weight, offset, normaliser, *theirs, expected)
        ctx.rewards = rewards
        return expected[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, offset, normaliser, *theirs, expected = ctx.saved_tensors
        student, (gradient,) = Read(LinearHead(weight, offset), features), gradients
        to_features = torch.zeros_like(features, dtype=offset.dtype)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_offset = torch.zeros_like(offset) if ctx.needs_input_grad[2] else None
        for columns in student.head.chunks(len(features)):
            # 1. the gradient in a chunk's logits, p (r − E)
            own = student.logits(columns) - normaliser
            reward = ctx.rewards.of(own, columns, (theirs[0], theirs[1]))
            to_logits = own.exp() * (reward - expected) * gradient[:, None]
            # 2. and in what they are made of
            to_features += to_logits.to(weight) @ weight[columns]
            if to_weight is not None:
                to_weight[columns] = to_logits.to(features).T @ features
            if to_offset is not None:
                to_offset[columns] = to_logits.sum(0)
        return to_features.to(features), to_weight, to_offset, None
