"""How an integral KL masks the student's sample again before critic and teacher see it, and how much each time counts.

Time t runs from 0 (clean) to 1 (all masked).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from objectives.parts import Part
from objectives.rollouts import RolloutPart
from students.rollout import Trajectory
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, beta, uniform
from teachers.section import Section


def beta_density(t: Tensor, a: int, b: int) -> Tensor:
    """Density of Beta(a, b) at t."""
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return torch.exp(constant + (a - 1) * torch.log(t) + (b - 1) * torch.log1p(-t))


class Times(Section):
    """The law π of the times that are drawn: of the state, or of the corruption, or of its share of a step.

    Attributes:
        pi: whole (a, b) of a Beta law.
        clamp: times stay within.
    """

    pi: tuple[PositiveInt, PositiveInt] = (1, 1)  # [paper] uniform; 2509.25035
    clamp: tuple[float, float] = (0.02, 0.98)  # [code] of DiDi-Instruct

    @field_validator("clamp")
    @classmethod
    def _ordered(cls, clamp: tuple[float, float]) -> tuple[float, float]:
        low, high = clamp
        if not 0 < low < high <= 1:
            raise ValueError(f"it is {clamp}; give 0 < low < high ≤ 1")
        return clamp

    def draw(self, rows: int, group: int, randomness: RowStreams) -> Tensor:
        """(B,), one for a whole group of rows: a baseline over different noise levels would mix them."""
        drawn = beta(randomness, rows, *self.pi).clamp(*self.clamp)
        return drawn.view(-1, group)[:, :1].expand(-1, group).reshape(-1)


class CorruptionPart(Part, ABC):
    """At what time the sample is masked, and where.

    Attributes:
        redraws: its time is no rollout's.
    """

    redraws: ClassVar[bool] = False

    def check(self, rollout: RolloutPart) -> None:
        """Refuse a rollout that it has no meaning for.

        Raises:
            ValueError: the remedy.
        """

    @abstractmethod
    def time(self, trajectory: Trajectory, drawn: Tensor, times: Times) -> Tensor:
        """(B,) the time of the corrupted sample.

        Args:
            drawn: (B,) from π.
        """

    def hidden(
        self, canvas: Canvas, trajectory: Trajectory, t: Tensor, process: MaskedProcess, randomness: RowStreams
    ) -> Tensor:
        """(B, L) bool: which positions of the sample are masked at t, of those that the canvas had open."""
        return canvas.open & (uniform(randomness, *canvas.tokens.shape) >= process.alpha(t)[:, None])


class Independent(CorruptionPart):
    """At a time of its own, t ~ π."""

    redraws: ClassVar[bool] = True
    name: Literal["independent"] = "independent"

    def time(self, trajectory: Trajectory, drawn: Tensor, times: Times) -> Tensor:
        """The drawn one."""
        return drawn


class Coupled(CorruptionPart):
    """At the time of the state that the sample was drawn from (2509.25035)."""

    name: Literal["coupled"] = "coupled"

    def check(self, rollout: RolloutPart) -> None:
        """There must be a state between."""
        if not rollout.intermediate:
            raise ValueError(
                f"corruption 'coupled' needs an intermediate state, and rollout {rollout.name!r} has none; set rollout "
                "to 'two_moves' or 'k_step'"
            )

    def time(self, trajectory: Trajectory, drawn: Tensor, times: Times) -> Tensor:
        """The state's."""
        return trajectory.time.clamp(*times.clamp)


class Nested(CorruptionPart):
    """Only the newly drawn tokens are masked, so that the context always holds what the state held [own].

    Attributes:
        horizon: how many of the sampler's next steps the time may lie ahead of the state's; None for all that are left.
            With 1 the context is what the very next step might have revealed.
    """

    name: Literal["nested"] = "nested"
    horizon: int | None = Field(default=None, ge=1)  # [own]

    def time(self, trajectory: Trajectory, drawn: Tensor, times: Times) -> Tensor:
        """Ahead of the state's by the drawn share."""
        ahead = trajectory.time
        if self.horizon is not None:
            ahead = torch.minimum(ahead, self.horizon * (trajectory.time - trajectory.next_time))
        return (trajectory.time - drawn * ahead).clamp(min=times.clamp[0] * trajectory.time)

    def hidden(
        self, canvas: Canvas, trajectory: Trajectory, t: Tensor, process: MaskedProcess, randomness: RowStreams
    ) -> Tensor:
        """Of the tokens that the last move drew, those that would still be masked at t."""
        kept = process.reveal_probability(trajectory.time, t)
        return trajectory.revealed[:, -1] & (uniform(randomness, *canvas.tokens.shape) >= kept[:, None])


AnyCorruption = Annotated[Independent | Coupled | Nested, Field(discriminator="name")]


class WeightPart(Part):
    """ω(t).

    Attributes:
        importance: divide it by the density of π, so that π only says where the samples are.
    """

    importance: bool = False

    def at(self, t: Tensor, times: Times, process: MaskedProcess) -> Tensor:
        """(B,) weights of (B,) times."""
        weight = self.omega(t, process)
        return weight / beta_density(t, *times.pi) if self.importance else weight

    def omega(self, t: Tensor, process: MaskedProcess) -> Tensor:
        """(B,) ω(t) = 1."""
        return torch.ones_like(t)


class UniformWeight(WeightPart):
    """ω = 1."""

    name: Literal["uniform"] = "uniform"


class ElboWeight(WeightPart):
    """ω = −α'/(1−α), which is 1/t for log-linear noise; clamped."""

    name: Literal["elbo"] = "elbo"
    clamp: tuple[float, float] = (0.1, 10.0)  # [code] of DiDi-Instruct

    def omega(self, t: Tensor, process: MaskedProcess) -> Tensor:
        """(B,) the ELBO's weight, clamped."""
        return process.elbo_weight(t).clamp(*self.clamp)


AnyWeight = Annotated[UniformWeight | ElboWeight, Field(discriminator="name")]
