"""Rounds: what an objective that replaces its target now and then shares with the others that do."""

from __future__ import annotations

from pydantic import PositiveInt

from objectives.objective import Distillation, Objective, ObjectiveConfig, OneRollout
from students.student import twin
from teachers.denoiser import Denoiser


class RoundsConfig(ObjectiveConfig):
    """How a run is divided.

    Attributes:
        rounds: how many; at the start of each but the first the target becomes the averaged student.
        round_updates: updates of a round, the last taking what is left; None for equal parts of the run.
    """

    rounds: PositiveInt
    round_updates: PositiveInt | None = None

    def round_of(self, update: int, updates: int) -> int:
        """The round, from 0, of an update, from 0, of so many."""
        if self.round_updates is None:
            return update * self.rounds // updates
        return min(update // self.round_updates, self.rounds - 1)


class RoundsObjective(Objective[OneRollout]):
    """Trains the student against a frozen `source` that changes from round to round.

    Attributes:
        round: the current one, from 0; `begin` sets it.
    """

    asks = ("target",)

    def __init__(self, config: RoundsConfig, distillation: Distillation):
        self.rounds = config
        self.teacher, self.student, self.process = distillation.teacher, distillation.student, distillation.process
        self.tail = distillation.tail
        self.target = twin(distillation.student)
        self.round = 0

    def begin(self, update: int, updates: int) -> bool:
        """See `Objective.begin`."""
        self.round = self.rounds.round_of(update, updates)
        return update > 0 and self.round != self.rounds.round_of(update - 1, updates)

    @property
    def source(self) -> Denoiser:
        """The teacher in the first round, before the target was ever filled; then the target."""
        assert self.target is not None
        return self.teacher if self.round == 0 else self.target
