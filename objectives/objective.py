"""The contract between an objective and the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from teachers.randomness import RowStreams


@dataclass
class LossOutput:
    """A loss as a sum over its terms, so that accumulation and data parallelism are exact.

    Attributes:
        sum: scalar, differentiable; the gradient of ``sum / Objective.count over the whole batch`` is applied.
        metrics: name → (sum, count) of what is worth logging; detached.
    """

    sum: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Rollout:
    """Everything random of one update. Every field is a tensor whose first dimension is the rows, or None.

    Losses are deterministic functions of a rollout, so a batch may be split into micro-batches anywhere.
    """

    def __len__(self) -> int:
        """Rows."""
        return next(len(value) for f in fields(self) if (value := getattr(self, f.name)) is not None)

    def rows(self, part: slice) -> Any:
        """The rollout of some of the rows."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[part] for k, v in cut.items() if v is not None})


class Objective(ABC):
    """One training method.

    Once per update the loop calls `rollout` on the rows of this process; then, phase by phase, it sums `count` over all
    rows of all processes, and calls `loss` on each micro-batch. No ``.backward()``, logging or device calls here.

    Attributes:
        phases: names in order, each owning one optimiser, e.g. ``("critic", "student")``.
        group: micro-batches must hold a multiple of this many rows.
    """

    phases: ClassVar[tuple[str, ...]]
    group: int = 1

    @abstractmethod
    def network(self, phase: str) -> nn.Module:
        """The network that ``phase`` trains."""

    @abstractmethod
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> Rollout:
        """Draw all that is random.

        Args:
            real: (rows, L) clean tokens, or None when training without data.
            randomness: one stream a row.
        """

    @abstractmethod
    def count(self, phase: str, rollout: Rollout) -> Tensor:
        """How many terms `loss` sums over: a scalar, known before any network runs."""

    @abstractmethod
    def loss(self, phase: str, rollout: Rollout) -> LossOutput:
        """The loss of ``phase``; differentiable in the parameters of `network(phase)` alone."""
