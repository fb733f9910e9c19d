"""The rollout of an integral KL: from which states the student writes the sample that it is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.parts import Part
from students.rollout import Trajectory, from_data, k_step, one_move, two_moves
from students.samplers.sampler import Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.host import columns_of, derived
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams


@dataclass(frozen=True)
class Start:
    """What a rollout starts from.

    Attributes:
        student: the network that writes.
        process: its noise.
        canvas: what it writes on.
        sampler: how the student will fill canvases.
        real: (B, L) clean tokens, for rollouts that need data.
        tau: (B,) times from π, for rollouts whose state has one.
        randomness: one stream a row.
    """

    student: Denoiser
    process: MaskedProcess
    canvas: Canvas
    sampler: Sampler
    real: Tensor | None
    tau: Tensor
    randomness: RowStreams


def recorded(states: Tensor, revealed: Tensor, time: Tensor, canvas: Canvas) -> list[Canvas]:
    """The M states of a trajectory on a canvas: open is what this move and later ones write.

    Args:
        states, revealed: (B, M, L). time: (B,) of the last state; those before it start at 1.
    """
    times = [torch.ones_like(time)] * (states.shape[1] - 1) + [time]
    open_ = derived(lambda each: each.flip(1).cumsum(1).flip(1) > 0, revealed)  # (B, M, L)
    each = zip(columns_of(states), columns_of(open_), times, strict=True)
    return [replace(canvas, tokens=tokens, open=where, time=t) for tokens, where, t in each]


class RolloutPart(Part, ABC):
    """Which states.

    Attributes:
        moves: M, how many it records.
        needs_data: it starts from rows of data.
        samples: it fills canvases as the run's sampler does.
        timed: it makes a state at a time that is drawn from π.
        intermediate: the last recorded state lies between the start and the sample.
    """

    moves: ClassVar[int] = 1
    needs_data: ClassVar[bool] = False
    samples: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    intermediate: ClassVar[bool] = True

    @property
    def most_steps(self) -> int:
        """The largest number of sampling steps that it trains for."""
        return 1

    @property
    def fewest_steps(self) -> int | None:
        """The smallest number of steps that it trains the run's sampler for; None where it does not ask that."""
        return None

    @property
    def times_used(self) -> int:
        """Steps that each network makes at the states of one rollout."""
        return 1

    @abstractmethod
    def draw(self, start: Start) -> Trajectory:
        """Let the student write."""


class OneMove(RolloutPart):
    """All masked → x in one move (Di[M]O, 2503.15457).

    Attributes:
        random_share: of the canvas that starts with random tokens instead of masks.
    """

    intermediate: ClassVar[bool] = False
    name: Literal["one_move"] = "one_move"
    random_share: float = Field(default=0.0, ge=0, lt=1)  # [own] our samplers start all masked

    def draw(self, start: Start) -> Trajectory:
        """See `students.rollout.one_move`."""
        return one_move(start.student, start.canvas, start.randomness, self.random_share)


class TwoMoves(RolloutPart):
    """All masked → z_τ → x, τ ~ π (DiDi-Instruct, 2509.25035)."""

    moves: ClassVar[int] = 2
    timed: ClassVar[bool] = True
    name: Literal["two_moves"] = "two_moves"

    def draw(self, start: Start) -> Trajectory:
        """See `students.rollout.two_moves`."""
        return two_moves(start.student, start.process, start.canvas, start.tau, start.randomness)


class KStep(RolloutPart):
    """A state of the student's own sampler, and a full draw from it [own].

    A gradient is only of the last move, so that the states may be those of a student some steps ago: the sample is
    drawn from them again by the student as it is, and needs no importance weight.

    Attributes:
        steps: the step counts K that are drawn from.
        uses: steps that each network makes at the states of one rollout, each on a sample of its own. An update then is
            as many steps. More of them save the passes that lead to the states, and train at fewer states.
    """

    samples: ClassVar[bool] = True
    name: Literal["k_step"] = "k_step"
    steps: list[PositiveInt] = Field(default=[8, 16], min_length=1)  # [own]
    uses: PositiveInt = 1  # [own]

    @property
    def most_steps(self) -> int:
        """Of ``steps``."""
        return max(self.steps)

    @property
    def fewest_steps(self) -> int:
        """Of ``steps``."""
        return min(self.steps)

    @property
    def times_used(self) -> int:
        """``uses``."""
        return self.uses

    def draw(self, start: Start) -> Trajectory:
        """See `students.rollout.k_step`."""
        return k_step(start.student, start.process, start.canvas, start.sampler, self.steps, start.randomness)


class FromData(RolloutPart):
    """A real row masked to a time t ~ π, and a full draw from it (IDLM, 2602.19066)."""

    needs_data: ClassVar[bool] = True
    timed: ClassVar[bool] = True
    name: Literal["data"] = "data"

    def draw(self, start: Start) -> Trajectory:
        """See `students.rollout.from_data`."""
        assert start.real is not None
        return from_data(start.student, start.process, start.real, start.canvas, start.tau, start.randomness)


AnyRollout = Annotated[OneMove | TwoMoves | KStep | FromData, Field(discriminator="name")]
