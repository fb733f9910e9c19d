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
from pydantic import Field, model_validator
from torch import Tensor, nn

from students.drawing import Drawing, Summary, Tokens
from students.samplers.blocks import Blocks, block_numbers, number_events
from students.session import Session
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
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
    """What a rule that decides pass by pass looks at, N being the candidates of R rows, in row-major order.

    Where a canvas is written in blocks, passes and positions are those of the block that a row is at.

    Attributes:
        canvas: the rows before the pass.
        candidates: (R, L) the open positions that may be committed: all of them, or those of a block.
        number: (R,) n of the pass, from 0. steps: (R,) how many there may be.
        to_write: (R,) how many positions were open at the start.
        features: (N, H) what the denoiser's head read.
        log_prob, confidence, summaries: (N,), (N,) and (N, S), see `students.drawing.Tokens`.
        denoiser: which may have an opinion. randomness: of these rows.
    """

    canvas: Canvas
    candidates: Tensor
    number: Tensor
    steps: Tensor
    to_write: Tensor
    features: Tensor
    log_prob: Tensor
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
        number: n of the pass. most: the largest of the steps, in every process. passes: how many there may be, in every
            process: no more than there are tokens.
        schedule: of a `PlannedSampler`. blocks: of a `StepwiseSampler`.
    """

    schedule: Schedule
    blocks: Blocks

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
        self.most = max(steps.tolist(), default=0) if passes is None else passes
        self.passes = min(self.most, canvas.length)
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
        edits: whether what is committed may be changed again, so that a row may take more passes than it has tokens.
    """

    needs_critic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    name: str

    @property
    def summary(self) -> Summary | None:
        """What the rule reads of each position beside its token; None for nothing."""
        return None

    @property
    def blind(self) -> bool:
        """Whether positions are chosen without sight of what is drawn for them, so that text has the drawn law."""
        return True

    @property
    def label(self) -> str:
        """What tables call it: its name, and what a reader must know to compare its figures."""
        temperature = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        filters = "".join(
            f", {name.replace('_', '-')} {value:g}"
            for name, value in (("top_k", self.top_k), ("top_p", self.top_p))
            if value is not None
        )
        return self.name + temperature + filters + f", {self.draw}" * (self.draw == "greedy")

    def check(self, critic: nn.Module | None) -> None:
        """Refuse a run without what the rule needs.

        Raises:
            UserError: it needs a critic, and this is none.
        """

    def fewest_steps(self, canvas: Canvas, denoiser: Denoiser) -> int:
        """With how many steps every row of a canvas can be filled, at least."""
        return 1

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
            given=given, summary=self.summary,
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
    """A rule that decides pass by pass.

    Attributes:
        block_length: tokens of the blocks that a canvas is written in, one after the other
            (students/samplers/blocks.py); None for the whole canvas at once. Where the denoiser has block attention
            and predicts the next token, the first token of an attention block is committed alone: what predicts it
            sees nothing of its block (Fast-dLLM v2, which takes it from the pass that stores the block before).
        stop: a row ends with the first block that holds an end token: what follows is filled with end tokens.
    """

    block_length: int | None = Field(default=None, ge=1)
    stop: bool = False

    @model_validator(mode="after")
    def _stops_after_blocks(self) -> StepwiseSampler:
        if self.stop and self.block_length is None:
            raise ValueError("stop ends a text after one of its blocks; set block_length as well, or leave stop out")
        return self

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        blocks = "" if self.block_length is None else f", blocks of {self.block_length}"
        return super().label + blocks

    @abstractmethod
    def commit(self, prediction: Prediction) -> Tensor:
        """Which of the candidates to commit: (R, L) bool, at least one in every row.

        What it says of a row's last step, or its last within a block, is not heeded: that one commits everything.
        """

    def fewest_steps(self, canvas: Canvas, denoiser: Denoiser) -> int:
        """One for each block; see `Sampler.fewest_steps`."""
        return max(1, int(block_numbers(canvas, denoiser, self.block_length)[1].max()))

    def begin(self, work: Work) -> int:
        """See `Sampler.begin`."""
        if self.stop and work.session.spec.eos_id is None:
            raise UserError("sampler.stop waits for an end token, and this model has none; set sampler.stop=false")
        work.blocks = self.blocks(work)
        return work.passes

    def blocks(self, work: Work) -> Blocks:
        """Of the canvas before the first pass."""
        return Blocks(work.canvas, work.session.denoiser, work.steps, self.block_length)

    def ask(self, work: Work) -> Asked | None:
        """What is open in each row's current block."""
        work.blocks.move(self.current(work), work.number)
        if self.stop:
            self.end(work)
        unfinished = work.blocks.current < work.blocks.count
        if work.until is not None:
            unfinished &= work.number < work.until
        rows = unfinished.nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        share = work.canvas.rows(rows).open_share()
        return Asked(rows, self.positions(work)[rows], work.process.time_of(1 - share))

    def current(self, work: Work) -> Tensor:
        """(B,) the block that each row is at: the first that has something open."""
        blocks = work.blocks
        return torch.where(work.canvas.open, blocks.number, blocks.count[:, None]).amin(1)

    def end(self, work: Work) -> None:
        """Fill up the rows whose last block holds an end token."""
        blocks, canvas, eos_id = work.blocks, work.canvas, work.session.spec.eos_id
        assert eos_id is not None
        written = (blocks.number >= 0) & (blocks.number < blocks.current[:, None])
        ended = (written & (canvas.tokens == eos_id)).any(1)
        rest = canvas.open & ended[:, None]
        canvas.tokens.masked_fill_(rest, eos_id)
        canvas.open.logical_and_(~rest)
        blocks.current = torch.where(ended, blocks.count, blocks.current)

    def positions(self, work: Work) -> Tensor:
        """(B, L) what is open in each row's current block, or only the first of it where that is committed alone."""
        candidates = work.canvas.open & work.blocks.here()
        if not work.session.spec.shift:
            return candidates
        first = candidates & work.blocks.first
        alone = first.any(1) & self.going(work)
        return torch.where(alone[:, None], first, candidates)

    def going(self, work: Work) -> Tensor:
        """(B,) whether another pass may follow in the current block."""
        return work.number - work.blocks.began + 1 < work.blocks.budget()

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """See `Sampler.settle`."""
        drawn, commit = self.draw_tokens(work, asked, features), asked.positions.clone()
        going = self.going(work)[asked.rows]
        if work.number + 1 < work.passes:
            at = going[:, None].expand_as(commit)[commit]
            part = Tokens(*(values[at] for values in drawn))
            commit[going] = self.choice(work, asked.rows[going], before.rows(going), commit[going], features[at], part)
        return drawn, commit

    def idle(self, work: Work) -> None:
        """The rule is asked about no rows, since it may ask the denoiser in its turn."""
        features = work.session.idle(work.canvas)
        if work.number + 1 < work.passes:
            rows, none = work.steps.new_zeros(0), features.new_zeros(0)
            nothing = Tokens(rows, none, none, none.view(0, 2))
            self.choice(work, rows, work.canvas.rows(rows), work.canvas.open[rows], features, nothing)

    def choice(
        self, work: Work, rows: Tensor, before: Canvas, candidates: Tensor, features: Tensor, drawn: Tokens
    ) -> Tensor:
        """What `commit` says of R rows: (R, L).

        Args:
            candidates: (R, L), N positions. features: (N, H) there. drawn: the N tokens there.
        """
        blocks = work.blocks
        prediction = Prediction(
            before, candidates, work.number - blocks.began[rows], blocks.budget()[rows], blocks.here().sum(1)[rows],
            features, drawn.log_prob, drawn.confidence, drawn.summaries, work.session.denoiser,
            of_rows(work.randomness, rows),
        )  # fmt: skip
        return self.commit(prediction)
