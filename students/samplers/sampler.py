"""The contract of a rule: which open positions to commit in a pass. A rule's settings are the ``sampler:`` section.

There are two kinds, and a rule of either kind is one method. A `PlannedSampler` looks at no prediction: it says
beforehand in which transition each position is written, and a pass asks just the positions that it writes. A
`StepwiseSampler` decides pass by pass: it asks all open positions and says which of them to commit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from students.drawing import Drawing, Tokens
from students.session import Session
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, of_rows, uniform_at

LOG_LINEAR = MaskedProcess()


@dataclass(frozen=True)
class Asked:
    """What a pass asks the denoiser.

    Attributes:
        rows: (R,) indices of the rows that take it.
        positions: (R, L) bool, at which of their positions tokens are drawn.
        time: (R,) t of these rows, or None.
    """

    rows: Tensor
    positions: Tensor
    time: Tensor | None = None

    def written(self, before: Canvas, tokens: Tensor, commit: Tensor) -> Tensor:
        """The rows ``before``, with the (N,) tokens of the asked positions where (R, L) ``commit`` says: (R, L)."""
        return torch.where(commit, before.tokens.masked_scatter(self.positions, tokens), before.tokens)


@dataclass(frozen=True)
class Prediction:
    """What a rule that decides pass by pass looks at, N being the open positions of R rows, in row-major order.

    Attributes:
        canvas: the rows before the pass.
        number: n of the pass, from 0. steps: (R,) how many there may be.
        to_write: (R,) how many positions were open at the start.
        features: (N, H) what the denoiser's head read.
        confidence, summaries: (N,) and (N, 2), see `students.drawing.Tokens`.
        denoiser: which may have an opinion. randomness: of these rows.
    """

    canvas: Canvas
    number: int
    steps: Tensor
    to_write: Tensor
    features: Tensor
    confidence: Tensor
    summaries: Tensor
    denoiser: Denoiser
    randomness: Randomness


class Schedule(NamedTuple):
    """When each position is written.

    Attributes:
        transition: (B, L), as `PlannedSampler.transitions` says.
        event, events: as `number_events` says.
    """

    transition: Tensor
    event: Tensor
    events: Tensor


class Work:
    """A canvas on its way: what `students.fill.fill` shows its rule.

    Attributes:
        session: the denoiser, counted.
        canvas: as it is now. to_write: (B,) positions that were open at the start.
        steps, process, randomness, critic, until, given, uniforms: as of `fill`; steps are (B,).
        number: n of the pass. passes: how many there may be, in every process.
        schedule: of a `PlannedSampler`.
    """

    schedule: Schedule

    def __init__(
        self,
        session: Session,
        canvas: Canvas,
        steps: Tensor,
        process: MaskedProcess,
        randomness: Randomness,
        critic: nn.Module | None = None,
        until: Tensor | None = None,
        given: Tensor | None = None,
        uniforms: Tensor | None = None,
        passes: int | None = None,
    ):
        most = max(steps.tolist(), default=0) if passes is None else passes
        self.passes = min(most, canvas.length)
        self.session, self.steps, self.process, self.randomness = session, steps, process, randomness
        self.critic, self.until, self.given, self.uniforms = critic, until, given, uniforms
        self.canvas = Canvas(canvas.tokens.clone(), canvas.open.clone(), canvas.real, canvas.time)
        self.to_write, self.number = canvas.open.sum(1), 0

    def rows(self, asked: Asked) -> Canvas:
        """The rows that are asked, as they are now."""
        real = None if self.canvas.real is None else self.canvas.real[asked.rows]
        return Canvas(self.canvas.tokens[asked.rows], self.canvas.open[asked.rows], real, asked.time)

    def write(self, asked: Asked, before: Canvas, tokens: Tensor, commit: Tensor) -> None:
        """Put the (N,) tokens of the asked positions where (R, L) ``commit`` says, and close these positions."""
        self.canvas.tokens[asked.rows] = asked.written(before, tokens, commit)
        self.canvas.open[asked.rows] = before.open & ~commit


class Sampler(Drawing, ABC):
    """A rule with its settings, and how tokens are drawn: the ``sampler:`` section of a config, or just its name.

    Attributes:
        needs_critic: whether `fill` must be given a critic; where there is none, as for a teacher, the reference is
            plain ancestral sampling.
        adaptive: how many passes a row takes depends on what the network says; ``steps`` is then only a cap.
        summarises: whether the rule reads `Prediction.summaries`.
    """

    needs_critic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    summarises: ClassVar[bool] = False
    name: str

    @property
    def blind(self) -> bool:
        """Whether positions are chosen without sight of what is drawn for them, so that text has the drawn law."""
        return True

    @property
    def label(self) -> str:
        """What tables call it: its name, and what a reader must know to compare its figures."""
        temperature = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return self.name + temperature + f", {self.draw}" * (self.draw == "greedy")

    def check(self, critic: nn.Module | None) -> None:
        """Refuse a run without what the rule needs.

        Raises:
            UserError: it needs a critic, and this is none.
        """

    def start(self, canvas: Canvas, spec: DenoiserSpec, randomness: Randomness) -> Canvas:
        """What the first pass sees; most rules leave the canvas as it is."""
        return canvas

    @abstractmethod
    def begin(self, work: Work) -> int:
        """Before the first pass; says how many passes there may be, of all rows together."""

    @abstractmethod
    def ask(self, work: Work) -> Asked | None:
        """What the pass asks; None where no row has anything to ask."""

    @abstractmethod
    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """Draw tokens at the N asked positions, and say which of them to commit, (R, L).

        Args:
            before: the rows that are asked, before the pass. features: (N, H) what the denoiser's head reads.
        """

    def idle(self, work: Work) -> None:
        """A pass without rows, where passes are collective: the other processes may have some."""
        work.session.idle(work.canvas)

    def draw_tokens(self, work: Work, asked: Asked, features: Tensor) -> Tokens:
        """A token at each of the N asked positions, from the denoiser's law there."""
        uniforms = given = None
        if work.given is not None:
            given = work.given[asked.rows][asked.positions]
        elif work.uniforms is not None:
            uniforms = work.uniforms[asked.rows][asked.positions]
        elif self.draw == "exact":
            uniforms = uniform_at(of_rows(work.randomness, asked.rows), asked.positions, len(features))
        return self.tokens(
            work.session.denoiser.head, work.session.chunks(len(features)), uniforms, work.randomness, features,
            given=given, summarise=self.summarises,
        )  # fmt: skip


class PlannedSampler(Sampler):
    """A rule that looks at no prediction."""

    @abstractmethod
    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """The transition k, from t = 1 − k/steps to 1 − (k+1)/steps, that writes each open position.

        Args:
            steps: (B,).

        Returns:
            (B, L) in [0, steps).
        """

    def begin(self, work: Work) -> int:
        """Number each row's transitions: pass n serves the n-th of every row that has one."""
        transition = self.transitions(work.canvas, work.steps, work.process, work.randomness)
        where = work.canvas.open if work.until is None else work.canvas.open & (transition < work.until[:, None])
        work.schedule = Schedule(transition, *number_events(transition, where))
        if work.session.denoiser.collective:
            return work.passes
        return max(work.schedule.events.tolist(), default=0)

    def ask(self, work: Work) -> Asked | None:
        """The positions that this pass writes."""
        transition, event, events = work.schedule
        rows = (events > work.number).nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        now = event[rows] == work.number
        time = 1 - transition[rows].masked_fill(~now, 0).amax(1).double() / work.steps[rows]
        return Asked(rows, now, time)

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """All that is asked is committed."""
        return self.draw_tokens(work, asked, features), asked.positions


class StepwiseSampler(Sampler):
    """A rule that decides pass by pass."""

    @abstractmethod
    def commit(self, prediction: Prediction) -> Tensor:
        """Which open positions to commit: (R, L) bool, some of them, at least one in every row.

        What it says of a row's last step is not heeded: that one commits everything.
        """

    def begin(self, work: Work) -> int:
        """See `Sampler.begin`."""
        return work.passes

    def ask(self, work: Work) -> Asked | None:
        """All that is open."""
        unfinished = work.canvas.open.any(1)
        if work.until is not None:
            unfinished &= work.number < work.until
        rows = unfinished.nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        part = work.canvas.rows(rows)
        return Asked(rows, part.open, work.process.time_of(1 - part.open_share()))

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """See `Sampler.settle`."""
        drawn, commit = self.draw_tokens(work, asked, features), asked.positions.clone()
        going = work.number + 1 < work.steps[asked.rows]
        if work.number + 1 < work.passes:
            at = going[:, None].expand_as(commit)[commit]
            part = Tokens(*(values[at] for values in drawn))
            commit[going] = self._commit(work, asked.rows[going], before.rows(going), features[at], part)
        return drawn, commit

    def idle(self, work: Work) -> None:
        """The rule is asked about no rows, since it may ask the denoiser in its turn."""
        features = work.session.idle(work.canvas)
        if work.number + 1 < work.passes:
            rows, none = work.steps.new_zeros(0), features.new_zeros(0)
            self._commit(work, rows, work.canvas.rows(rows), features, Tokens(rows, none, none, none.view(0, 2)))

    def _commit(self, work: Work, rows: Tensor, before: Canvas, features: Tensor, drawn: Tokens) -> Tensor:
        prediction = Prediction(
            before, work.number, work.steps[rows], work.to_write[rows], features, drawn.confidence, drawn.summaries,
            work.session.denoiser, of_rows(work.randomness, rows),
        )  # fmt: skip
        return self.commit(prediction)


def number_events(transition: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Number each row's distinct transitions at the positions of ``where`` (B, L) in order.

    Returns:
        (B, L) the number of the one that writes each of these positions, −1 elsewhere; (B,) how many a row has.
    """
    # 1. a row's transitions in order, (B, L); those that do not count are behind all others
    never = torch.iinfo(transition.dtype).max
    ordered, order = transition.masked_fill(~where, never).sort(dim=1)
    # 2. how many other transitions come before each
    rank = torch.zeros_like(ordered)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    # 3. back to the positions
    event = torch.empty_like(rank).scatter_(1, order, rank).masked_fill_(~where, -1)
    return event, event.amax(1) + 1
