"""A canvas on its way, as the loop shows it to its rule, and what a pass asks of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from students.samplers.blocks import Blocks
from students.session import Session
from teachers.canvas import Canvas
from teachers.host import derived, learned
from teachers.process import MaskedProcess
from teachers.randomness import Randomness

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
        return replace(self.canvas.rows(asked.rows, whole=len(asked.rows) == len(self.canvas)), time=asked.time)

    def write(self, asked: Asked, before: Canvas, tokens: Tensor, commit: Tensor) -> None:
        """Put the (N,) tokens of the asked positions where (R, L) ``commit`` says, and close these positions."""
        self.canvas.tokens[asked.rows] = asked.written(before, tokens, commit)
        self.canvas.open[asked.rows] = asked.left_open(before, commit)

    def mask(self, rows: Tensor, positions: Tensor) -> None:
        """Reopen (R, L) positions of some rows (R,), without a pass."""
        self.canvas.tokens[rows] = self.canvas.tokens[rows].masked_fill(positions, self.session.spec.mask_id)
        self.canvas.open[rows] |= positions
