"""The contract of a rule: which open positions to commit in a pass.

There are two kinds, and a rule of either kind is one method. A `PlannedSampler` (students/samplers/planned.py) looks at
no prediction: it says beforehand in which transition each position is written, and a pass asks just the positions that
it writes. A `StepwiseSampler` (students/samplers/stepwise.py) decides pass by pass: it asks all open positions and says
which of them to commit. Either writes a whole canvas, or block after block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from students.drawing import Summary, Tokens
from students.samplers.blocks import Blocks
from students.samplers.settings import SamplerSettings
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec, end_ids
from teachers.positions import at, on_device
from teachers.randomness import Randomness, RowStreams, generator_of, of_rows, uniform_at


class Sampler(SamplerSettings, ABC):
    """A rule with its settings, and how tokens are drawn: the ``sampler:`` section of a config, or just its name."""

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
