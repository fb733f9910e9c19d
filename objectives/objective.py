"""The contract between an objective and the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from objectives.tail import Tail
from students.adapters import AdapterConfig
from students.samplers import Ancestral, Sampler
from teachers.canvas import Batch, Canvas
from teachers.capability import Capability
from teachers.denoiser import Denoiser
from teachers.host import learned, part_of
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from teachers.section import Section

Needs = Literal["nothing", "rows", "written rows", "trajectories"]


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
    """Everything random of one update. Every field is a canvas, or a tensor whose first dimension is the rows, or None.

    Losses are deterministic functions of a rollout, so a batch may be split into micro-batches anywhere.

    Attributes:
        weights: (B, L) what each position of the text counts, of mean 1 in a row; None where all count alike, see
            objectives/tail.py.
    """

    weights: Tensor | None = field(default=None, kw_only=True)

    def parts(self) -> dict[str, Tensor | Canvas]:
        """The fields that are not None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.parts().values())))

    def rows(self, part: slice) -> Self:
        """The rollout of some of the rows."""
        cut = {
            name: value.rows(part) if isinstance(value, Canvas) else part_of(value, part)
            for name, value in self.parts().items()
        }
        return replace(self, **cut)

    def learn(self) -> None:
        """Let the host know all masks and tokens, for which it waits once: losses ask where masks are True."""
        each = (
            (value.tokens, value.open) if isinstance(value, Canvas) else (value,) for value in self.parts().values()
        )
        learned(*(tensor for tensors in each for tensor in tensors if tensor.dtype in (torch.bool, torch.int64)))


OneRollout = TypeVar("OneRollout", bound=Rollout)


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
        tail: what counts of an answer's canvas.
        prompted: canvases of the run's first rows, where these have prompts; None where a canvas is all open.
    """

    teacher: Denoiser
    student: Denoiser
    process: MaskedProcess
    length: int
    start: Denoiser
    sampler: Sampler = field(default_factory=Ancestral)
    tail: Tail = field(default_factory=Tail)
    prompted: Canvas | None = None

    def canvases(self, rows: int, device: torch.device | str) -> Canvas:
        """Such as the run's, for what is measured before it: the first ones again and again, or blank ones."""
        if self.prompted is None:
            return Canvas.blank(rows, self.length, self.student.spec.mask_id, device)
        return self.prompted.rows(torch.arange(rows) % len(self.prompted)).to(device)


@dataclass(frozen=True)
class Surroundings:
    """What a method may demand of the rest of a run's config.

    Attributes:
        length: L, tokens of a row.
        sampler: what the student is trained for. measured: what the watch and evaluation sample with.
        optimizers: phases that the config has an optimiser for.
    """

    length: int
    sampler: Sampler
    measured: Sampler
    optimizers: frozenset[str]


class ObjectiveConfig(Section, ABC):
    """The ``objective`` section: which one, with every hyperparameter's default tagged with its origin.

    Attributes:
        steps_key: the key whose value `most_steps` is.
    """

    name: str
    steps_key: ClassVar[str] = "steps"

    @property
    def phases(self) -> tuple[str, ...]:
        """As of `Objective`; the config needs an optimiser for each."""
        return ("student",)

    @property
    def group(self) -> int:
        """Rows that must stay in one micro-batch."""
        return 1

    @property
    def most_steps(self) -> int:
        """The largest number of sampling steps that it trains for; a row must have as many tokens."""
        return 1

    @property
    def fewest_steps(self) -> int | None:
        """The smallest number of steps that it trains the run's own sampler for; None where it does not ask that."""
        return None

    @property
    def adapters(self) -> bool:
        """Whether it puts adapters of its own on the teacher."""
        return False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it asks of `Distillation.start` beside weights."""
        return frozenset()

    @property
    def counted_blocks(self) -> int:
        """How many blocks of a network it treats unlike the others: the last ones of a critic, where only these train;
        the first ones of a network of which only these are read. 0 where all are alike."""
        return 0

    @property
    def unrounded(self) -> bool:
        """Whether it measures a network as it is loaded, or keeps it so, where others only see it cast."""
        return False

    def with_adapter(self, adapter: AdapterConfig) -> ObjectiveConfig:
        """The same with its critic on an adapter of the teacher; as it is where it has one already, or no critic."""
        return self

    def without_weights(self) -> ObjectiveConfig:
        """The same for networks that have shapes and no weights, of which nothing can be measured: to plan memory."""
        return self

    def check(self, run: Surroundings) -> None:
        """Refuse a run whose other sections do not fit.

        Raises:
            ValueError: what does not, and the remedy.
        """
        for phase in self.phases:
            if phase not in run.optimizers:
                raise ValueError(f"train.{phase} is missing; {self.name} trains a {phase}, give its lr")
        for phase in sorted(run.optimizers.difference(self.phases)):
            raise ValueError(f"train.{phase} is set, but {self.name} trains no {phase}; leave it out")
        self._check_steps(run)

    def _check_steps(self, run: Surroundings) -> None:
        if run.sampler.block_length == "attention":  # known when the model is
            return
        most = run.sampler.steps_between(run.length)[1]
        if self.most_steps > most:
            what = "row" if run.sampler.budget == "text" else "block"
            raise ValueError(
                f"objective.{self.steps_key} has {self.most_steps}, more steps than the {most} tokens of a {what}; "
                "leave it out"
            )

    def ranks(self, figures: Mapping[str, float], reference: Mapping[str, float] | None) -> float | None:
        """How good a checkpoint is, the lower the better; None where it can not be the best.

        Args:
            figures: what the watch measured of the averaged student: judge_perplexity, nfe, …, and of them
                relative_perplexity is that of the teacher where it writes as varied text.
            reference: the same of `Objective.reference`, where there is one.
        """
        return figures["relative_perplexity"]

    @abstractmethod
    def build(self, distillation: Distillation) -> Objective:
        """The objective; networks of its own are made with torch's global generator."""


class Objective(ABC, Generic[OneRollout]):
    """One training method.

    Once per update the loop calls `begin`, then `rollout` on the rows of this process; then, phase by phase, it sums
    `count` over all rows of all processes, calls `loss` on each micro-batch, and makes a step. Where ``uses`` is more
    than 1, it calls `again` and goes through the phases once more, until each made so many steps. No ``.backward()``,
    logging or device calls here: whoever runs it puts `networks` where, and in which precision, they are used.

    Attributes:
        phases: names in order, each owning one optimiser, e.g. ``("critic", "student")``.
        group: micro-batches must hold a multiple of this many rows.
        needs: what of a batch `rollout` reads beside its canvas: "nothing"; "rows" of data, its labels, which the
            teacher writes if need be; "written rows", labels that the teacher writes in any case; or "trajectories",
            the labels and the pass at which the teacher unmasked each.
        candidates: trajectories the teacher tries for each row; the one of the largest ELBO is kept.
        uses: steps that each phase makes of what one `rollout` went through.
        asks: the networks that `rollout` sends the rows through, one after the other; a name of `networks`, or
            "teacher".
        writes: whether `rollout` first lets the student write whole texts, one of each group.
        student: what trains in the phase of that name.
        target: a frozen network of the student's shape that `begin` can ask to be filled with the averaged student; it
            is kept in checkpoints. None for objectives without one.
        reference: what the watch also measures, once, for `ObjectiveConfig.ranks`; None for nothing.
    """

    phases: tuple[str, ...] = ("student",)
    group: int = 1
    needs: Needs = "nothing"
    candidates: int = 1
    uses: int = 1
    asks: tuple[str, ...] = ("student",)
    writes: bool = False
    student: Denoiser
    target: Denoiser | None = None
    reference: Denoiser | None = None

    def begin(self, update: int, updates: int) -> bool:
        """Told, before each rollout, the number of the update, from 0, and how many there will be.

        A function of its arguments alone, so that a resumed run goes on as it would have.

        Returns:
            Whether `target` is to be filled with the averaged student now.
        """
        return False

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All that it runs beside the teacher, by name: a phase's is trained, every other one is frozen."""
        networks: dict[str, nn.Module] = {"student": self.student}
        if self.target is not None:
            networks["target"] = self.target
        return networks

    @abstractmethod
    def rollout(self, batch: Batch, randomness: RowStreams) -> OneRollout:
        """Draw all that is random.

        Args:
            batch: what is to be written, with labels and order where ``needs`` says so. Prompts, suffixes and padding
                are not open: they are read, and neither corrupted, counted nor learned.
            randomness: one stream a row.
        """

    def again(self, rollout: OneRollout, randomness: RowStreams) -> OneRollout:
        """Draw anew, with the networks as they are now, what a rollout has behind the states that it went through.

        Only asked of objectives whose ``uses`` is more than 1.

        Args:
            rollout: of this update. randomness: the streams it was drawn from.
        """
        raise NotImplementedError(f"{type(self).__name__} uses a rollout once")

    def as_read(self, canvas: Canvas) -> Canvas:
        """What networks are sent of whole rows that are all open: these, or the blocks of a student of blocks."""
        return canvas

    @abstractmethod
    def outline(self, canvas: Canvas) -> OneRollout:
        """A rollout of the shapes that `rollout` gives at most, to measure the memory of a loss by; its values say
        nothing.

        Args:
            canvas: all open, as many rows as a loss sees.
        """

    @abstractmethod
    def count(self, phase: str, rollout: OneRollout) -> Tensor:
        """How many terms `loss` sums over: a scalar, known before any network runs."""

    @abstractmethod
    def loss(self, phase: str, rollout: OneRollout) -> LossOutput:
        """The loss of ``phase``; differentiable in the parameters of ``networks[phase]`` alone."""


def one_prompt_a_group(batch: Batch, group: int) -> Batch:
    """Every group of rows behind the prompt of its first row, so that a baseline compares what was written alone.

    Rows that are open everywhere have no prompts, and stay as they are.
    """
    if group == 1 or bool(learned(batch.canvas.open)[0].all()):
        return batch
    return batch.rows(torch.arange(len(batch), device=batch.canvas.device) // group * group)


def labels_of(batch: Batch) -> Tensor:
    """(B, L) the labels of a batch, for objectives that need them."""
    assert batch.labels is not None, "this objective needs labels"
    return batch.labels


def order_of(batch: Batch) -> Tensor:
    """(B, L) the unmasking order of a batch, for objectives that need it."""
    assert batch.order is not None, "this objective needs the teacher's order"
    return batch.order


def rows_to_write(canvas: Canvas) -> Tensor:
    """How many rows of a canvas have something open: a scalar."""
    return canvas.open.any(1).sum()


def timed(canvas: Canvas, process: MaskedProcess) -> Canvas:
    """The canvas at the time at which so much is masked as in it."""
    return replace(canvas, time=process.time_of(1 - canvas.open_share()))
