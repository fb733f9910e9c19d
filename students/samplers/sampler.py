"""The contract of a rule: which open positions to commit in a pass. A rule's settings are the ``sampler:`` section.

There are two kinds, and a rule of either kind is one method. A `PlannedSampler` (students/samplers/planned.py) looks at
no prediction: it says beforehand in which transition each position is written, and a pass asks just the positions that
it writes. A `StepwiseSampler` (students/samplers/stepwise.py) decides pass by pass: it asks all open positions and says
which of them to commit. Either writes a whole canvas, or block after block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from students.cache import Approximation
from students.drawing import Drawing, Summary, Tokens
from students.samplers.blocks import Blocks, block_numbers
from students.samplers.length import AnyLength
from students.session import Session, check_cache
from teachers.canvas import Canvas
from teachers.denoiser import UNBOUNDED, Denoiser, DenoiserSpec, end_ids
from teachers.errors import UserError
from teachers.host import derived, learned
from teachers.positions import at, on_device
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, RowStreams, generator_of, of_rows, uniform_at

LOG_LINEAR = MaskedProcess()
Budget = Literal["text", "block"]
"""What steps are counted for: a whole text, or each of its blocks."""


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

    def left_open(self, before: Canvas, commit: Tensor) -> Tensor:
        """(R, L) what is open after a pass that commits where (R, L) ``commit`` says."""
        return before.open & ~commit


class Schedule(NamedTuple):
    """When each position is written.

    Attributes:
        transition: (B, L), of all transitions of a row, block after block.
        event: as `number_events` says. events: (B,) how many a row has.
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
            process.
        blocks: that the canvas is written in. schedule: of a `PlannedSampler`. planned: its `planned_passes`, where
            none of them depends on what is written. ends: (E,) what ends a text, the token that fills up a text first.
            confidence: (B, L), of what was written, for a rule that remasks.
        transition: (B,) how many each row has made, for a rule that makes several in a pass. revealed: (B, L) what the
            pass will write, for a rule that draws it before it asks.
    """

    blocks: Blocks
    schedule: Schedule
    planned: list[tuple[Tensor, Tensor]] | None = None
    ends: Tensor
    confidence: Tensor
    transition: Tensor
    revealed: Tensor

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
        self.most = max(learned(steps)[0].tolist(), default=0) if passes is None else passes
        self.passes = min(self.most, canvas.length)
        self.session, self.steps, self.process, self.randomness = session, steps, process, randomness
        self.critic, self.until, self.given, self.uniforms = critic, until, given, uniforms
        tokens, open_ = (derived(Tensor.clone, values) for values in (canvas.tokens, canvas.open))
        self.canvas = replace(canvas, tokens=tokens, open=open_)
        self.to_write, self.number = canvas.open.sum(1), 0

    @property
    def choosing(self) -> bool:
        """Whether a rule is asked what to commit in this pass; the last of all commits everything."""
        return self.number + 1 < self.passes or self.until is not None

    def rows(self, asked: Asked) -> Canvas:
        """The rows that are asked, as they are now."""
        return replace(self.canvas.rows(asked.rows), time=asked.time)

    def write(self, asked: Asked, before: Canvas, tokens: Tensor, commit: Tensor) -> None:
        """Put the (N,) tokens of the asked positions where (R, L) ``commit`` says, and close these positions."""
        self.canvas.tokens[asked.rows] = asked.written(before, tokens, commit)
        self.canvas.open[asked.rows] = asked.left_open(before, commit)

    def mask(self, rows: Tensor, positions: Tensor) -> None:
        """Reopen (R, L) positions of some rows (R,), without a pass."""
        self.canvas.tokens[rows] = self.canvas.tokens[rows].masked_fill(positions, self.session.spec.mask_id)
        self.canvas.open[rows] |= positions


class Sampler(Drawing, ABC):
    """A rule with its settings, and how tokens are drawn: the ``sampler:`` section of a config, or just its name.

    Attributes:
        needs_critic: whether `fill` must be given a critic; where there is none, as for a teacher, the reference is
            plain ancestral sampling.
        adaptive: how many passes a row takes depends on what the network says; ``steps`` is then only a cap.
        edits: whether what is committed may be changed again, so that a row may take more passes than it has tokens.
        bounded: whether more steps than there are tokens can do no more.
        whole: whether it reads whole texts, and so does not write in blocks.
        inserts: whether texts may become longer while they are written, into the padding behind them.
        block_length: tokens of the blocks that a canvas is written in, one after the other
            (students/samplers/blocks.py), or "attention" for the blocks of the model's own; None for the whole canvas
            at once.
        stop: a row ends with the first block that holds an end token; without blocks, as soon as all is written up to
            and including one. What is open then is filled with end tokens.
        budget: what ``steps`` counts: the passes of a whole "text", shared out among its blocks, or of each "block".
        cache: an approximation, see `students.cache.Approximation`: what is drawn from is no longer the law of the
            canvas. None for the exact cache, where the denoiser has one.
        length: how the length of a text is found out before it is written (students/samplers/length.py); None: it is
            as long as the canvas, as texts are in training's rollouts in any case.
    """

    needs_critic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    inserts: ClassVar[bool] = False
    name: str
    block_length: int | Literal["attention"] | None = None
    stop: bool = False
    budget: Budget = "text"
    cache: Approximation | None = None
    length: AnyLength | None = None

    @field_validator("block_length", mode="before")
    @classmethod
    def _is_length(cls, value: Any) -> Any:
        if value is None or value == "attention" or (type(value) is int and value > 0):
            return value
        raise ValueError(
            f"{value!r} is no length of a block; give a number of tokens, attention for the model's own blocks, or null"
        )

    @model_validator(mode="after")
    def _in_blocks(self) -> Sampler:
        if self.whole and self.block_length is not None:
            raise ValueError(
                f"{self.name} reads whole texts and does not write in blocks of {self.block_length}; leave out "
                "block_length, or choose another sampler"
            )
        if self.stop and (self.whole or self.inserts):
            raise ValueError(f"{self.name} looks at whole texts and ends none of them early; leave stop out")
        if self.stop and self.edits and self.block_length is None:
            raise ValueError(
                f"what {self.name} has written may change as long as its block is written, so that stop ends a text "
                "after one of its blocks; set block_length as well, or leave stop out"
            )
        if self.budget == "block" and self.block_length is None:
            raise ValueError(
                "budget 'block' counts the steps of each block; set block_length as well, or leave budget out"
            )
        if self.cache is not None and self.block_length is None:
            raise ValueError("cache keeps what is around a block; set block_length as well, or leave cache out")
        return self

    @property
    def summary(self) -> Summary | None:
        """What the rule reads of each position beside its token; None for nothing."""
        return None

    @property
    def blind(self) -> bool:
        """Whether positions are chosen without sight of what is drawn for them, so that text has the drawn law."""
        return True

    @property
    def by_row(self) -> bool:
        """Whether each row draws from a stream of its own; else a batch draws from one, as published code does."""
        return self.draw != "float32-gumbel"

    def randomness(self, seed: int, key: Sequence[int], rows: range, device: torch.device) -> Randomness:
        """What to draw with, from a seed and what the draws are for.

        Args:
            rows: numbers of the rows, in all that is written with this seed and key.
        """
        if self.by_row:
            return RowStreams(seed, key, rows, device)
        return generator_of(seed, *key, rows.start, device=device)

    @property
    def label(self) -> str:
        """What tables call it: its name, and what a reader must know to compare its figures."""
        temperature = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        filters = "".join(
            f", {name.replace('_', '-')} {value:g}"
            for name, value in (("top_k", self.top_k), ("top_p", self.top_p))
            if value is not None
        )
        length = "" if self.length is None else f", {self.length.name} length"
        return (
            self.name + temperature + filters + f", {self.draw}" * (self.draw == "greedy") + self._blocks_label + length
        )

    @property
    def rule_label(self) -> str:
        """`label`, whatever the temperature."""
        return self.model_copy(update={"temperature": 1.0}).label

    @property
    def _blocks_label(self) -> str:
        counted = " with steps of their own" * (self.budget == "block")
        size = "the attention" if self.block_length == "attention" else self.block_length
        cache = "" if self.cache is None else f", approximate {self.cache} cache"
        return "" if self.block_length is None else f", blocks of {size}{counted}{cache}"

    def check(self, critic: nn.Module | None) -> None:
        """Refuse a run without what the rule needs.

        Raises:
            UserError: it needs a critic, and this is none.
        """

    @property
    def block_tokens(self) -> int | None:
        """``block_length`` of a sampler that is `fitted`."""
        assert self.block_length != "attention", "a sampler is fitted to a model first"
        return self.block_length

    def fitted(self, denoiser: Denoiser) -> Self:
        """The same for a denoiser, in the blocks of its attention where they are asked for.

        Raises:
            UserError: its attention has none, no token ends its texts, or it can not make such a cache.
        """
        size, fitted = denoiser.spec.block_size, self
        if self.block_length == "attention":
            if size is None:
                raise UserError(
                    f"sampler.block_length is 'attention', but this model's attention is {denoiser.spec.attention} and "
                    "has no blocks; give a number of tokens, or null"
                )
            fitted = self.model_copy(update={"block_length": size})
        if self.stop and not end_ids(denoiser):
            raise UserError("sampler.stop waits for an end token, and this model has none; set sampler.stop=false")
        if self.cache is not None:
            check_cache(denoiser, self.cache)
        return fitted

    def suited(self, denoiser: Denoiser) -> Self:
        """`fitted`, to a denoiser whose blocks it can write.

        Raises:
            UserError: its blocks cut those of the attention.
        """
        fitted, size = self.fitted(denoiser), denoiser.spec.block_size
        length = fitted.block_tokens
        if length is not None and size is not None and size % length and length % size:
            raise UserError(
                f"sampler.block_length is {length}, which cuts the blocks of {size} tokens of this model's attention; "
                f"set it to {size}, to a divisor or a multiple of it, or to attention"
            )
        return fitted

    def fewest_steps(self, canvas: Canvas, denoiser: Denoiser) -> int:
        """With how many steps every row of a canvas can be filled, at least: one for each block that shares them."""
        if self.budget == "block":
            return 1
        return int(self.block_counts(canvas, denoiser).max())

    def steps_between(self, length: int) -> tuple[int, int]:
        """With how many steps rows of ``length`` tokens can be filled, and with how many more is not gained."""
        tokens = length if self.block_tokens is None else self.block_tokens
        fewest, most = (1, min(length, tokens)) if self.budget == "block" else (-(-length // tokens), length)
        return fewest, most if self.bounded else UNBOUNDED

    def most_transitions(self, length: int, steps: int) -> int:
        """How many transitions a row of ``length`` tokens has, its blocks' together, at most."""
        tokens = self.block_tokens
        return steps * -(-length // tokens) if self.budget == "block" and tokens else steps

    def most_passes(self, length: int, steps: int) -> int:
        """How many passes a row of ``length`` tokens takes, at most: one a token, unless these may change again."""
        most = self.most_transitions(length, steps)
        return most if self.edits else min(most, length)

    def transitions_of(self, canvas: Canvas, denoiser: Denoiser, steps: Tensor) -> Tensor:
        """(B,) how many transitions each row has, its blocks' together. ``steps``: (B,)."""
        if self.budget == "text":
            return steps
        return steps * self.block_counts(canvas, denoiser)

    def block_counts(self, canvas: Canvas, denoiser: Denoiser) -> Tensor:
        """(B,) in how many blocks each row is written, at least 1."""
        return block_numbers(canvas, denoiser, self.fitted(denoiser).block_tokens)[1].clamp(min=1)

    def start(self, canvas: Canvas, spec: DenoiserSpec, randomness: Randomness) -> Canvas:
        """What the first pass sees; most rules leave the canvas as it is."""
        return canvas

    @abstractmethod
    def begin(self, work: Work) -> int:
        """Before the first pass; says how many passes there may be, of all rows together."""

    def enter(self, work: Work) -> None:
        """Find the blocks of a canvas, and what ends a text.

        Raises:
            UserError: fewer steps than blocks.
        """
        work.ends = on_device(end_ids(work.session.denoiser) if self.stop else [], work.canvas.device)
        work.passes = self.most_passes(work.canvas.length, work.most)
        work.blocks = self.blocks(work)

    def blocks(self, work: Work) -> Blocks:
        """Of the canvas before the first pass."""
        return Blocks(work.canvas, work.session.denoiser, work.steps, self.block_tokens, self.budget == "block")

    def move(self, work: Work) -> None:
        """See which block each row is at; with ``stop``, rows that ended are filled up."""
        work.blocks.move(self.current(work), work.number)
        if self.stop:
            self._end(work)

    def time_within(self, work: Work, rows: Tensor, block: Tensor, written: Tensor) -> Tensor:
        """(R,) t of some rows (R,) of whose current ``block`` (R,) such a part is ``written`` (R,), on average.

        Of a block within a text that a network sees whole, t is that of the whole text: at which as much of it is
        open. Where attention is in blocks, each has a time of its own.
        """
        if self.block_tokens is None or work.session.spec.attention == "block":
            return work.process.time_of(written)
        number = work.blocks.number[rows]
        here, later = (number == block[:, None]).sum(1), (number > block[:, None]).sum(1)
        return work.process.time_of(1 - (later + here * (1 - written)) / work.to_write[rows])

    def current(self, work: Work) -> Tensor:
        """(B,) the block that each row is at: the first that has something open."""
        blocks = work.blocks
        return torch.where(work.canvas.open, blocks.number, blocks.count[:, None]).amin(1)

    def _end(self, work: Work) -> None:
        blocks, canvas = work.blocks, work.canvas
        final = canvas.open.cumsum(1) == 0 if self.block_tokens is None else blocks.number < blocks.current[:, None]
        ended = (final & (blocks.number >= 0) & torch.isin(canvas.tokens, work.ends)).any(1)
        rest = canvas.open & ended[:, None]
        canvas.tokens.masked_fill_(rest, work.ends[0])
        canvas.open.logical_and_(~rest)
        blocks.current = torch.where(ended, blocks.count, blocks.current)

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
            given = at(work.given[asked.rows], asked.positions)
        elif work.uniforms is not None:
            uniforms = at(work.uniforms[asked.rows], asked.positions)
        elif self.draw == "exact":
            real = None if work.canvas.real is None else work.canvas.real[asked.rows]
            uniforms = uniform_at(of_rows(work.randomness, asked.rows), asked.positions, len(features), real)
        fusible = self.fusible and given is None and self.summary is None
        head = work.session.linear_head(len(features)) if fusible else None
        if head is not None:
            return self.fused_tokens(head, features, uniforms)
        return self.tokens(
            work.session.denoiser.head, work.session.chunks(len(features)), uniforms, work.randomness, features,
            given=given, summary=self.summary,
        )  # fmt: skip
