"""The contract between an objective and the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from students.samplers import Ancestral, Sampler
from teachers.capability import Capability
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from teachers.section import Section

Needs = Literal["nothing", "rows", "trajectories"]


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


@dataclass(frozen=True)
class Distillation:
    """What is distilled into what.

    Attributes:
        teacher: frozen.
        student: what trains.
        process: the noise that the teacher was trained with.
        length: L, tokens of a row.
        start: what critics are copies of: the teacher, or, where that is an exact one, no network, the student's start.
        sampler: how the student will fill canvases: its rollouts do so too.
    """

    teacher: Denoiser
    student: Denoiser
    process: MaskedProcess
    length: int
    start: Denoiser
    sampler: Sampler = field(default_factory=Ancestral)


class ObjectiveConfig(Section, ABC):
    """The ``objective`` section: which one, with every hyperparameter's default tagged with its origin.

    Attributes:
        phases: as of `Objective`; the config needs an optimiser for each.
    """

    name: str
    phases: ClassVar[tuple[str, ...]]

    @property
    def group(self) -> int:
        """Rows that must stay in one micro-batch."""
        return 1

    @property
    def most_steps(self) -> int:
        """The largest number of sampling steps that it trains for; a row must have as many tokens."""
        return 1

    @property
    def adapters(self) -> bool:
        """Whether it puts adapters of its own on the teacher."""
        return False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it asks of `Distillation.start` beside weights."""
        return frozenset()

    @abstractmethod
    def build(self, distillation: Distillation) -> Objective:
        """The objective; networks of its own are made with torch's global generator."""


class Objective(ABC):
    """One training method.

    Once per update the loop calls `begin`, then `rollout` on the rows of this process; then, phase by phase, it sums
    `count` over all rows of all processes, and calls `loss` on each micro-batch. No ``.backward()``, logging or device
    calls here.

    Attributes:
        phases: names in order, each owning one optimiser, e.g. ``("critic", "student")``.
        group: micro-batches must hold a multiple of this many rows.
        needs: what `rollout` gets for ``real``: "nothing"; "rows" of data, (rows, L), which the teacher writes if need
            be; or "trajectories", (rows, 2, L): the tokens, and the pass, from 0, at which the teacher unmasked each.
        candidates: trajectories the teacher tries for each row; the one of the largest ELBO is kept.
        target: a frozen network of the student's shape that `begin` can ask to be filled with the averaged student; it
            is kept in checkpoints. None for objectives without one.
    """

    phases: ClassVar[tuple[str, ...]]
    group: int = 1
    needs: Needs = "nothing"
    candidates: int = 1
    target: Denoiser | None = None

    def begin(self, update: int, updates: int) -> bool:
        """Told, before each rollout, the number of the update, from 0, and how many there will be.

        A function of its arguments alone, so that a resumed run goes on as it would have.

        Returns:
            Whether `target` is to be filled with the averaged student now.
        """
        return False

    @abstractmethod
    def network(self, phase: str) -> nn.Module:
        """The network that ``phase`` trains."""

    @abstractmethod
    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> Rollout:
        """Draw all that is random.

        Args:
            real: (rows, L) clean tokens, (rows, 2, L) trajectories, or None: see ``needs``.
            randomness: one stream a row.
        """

    @abstractmethod
    def count(self, phase: str, rollout: Rollout) -> Tensor:
        """How many terms `loss` sums over: a scalar, known before any network runs."""

    @abstractmethod
    def loss(self, phase: str, rollout: Rollout) -> LossOutput:
        """The loss of ``phase``; differentiable in the parameters of `network(phase)` alone."""
