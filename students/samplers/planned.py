"""Rules that look at no prediction: when each position is written is known before the first pass."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from students.drawing import Tokens
from students.samplers.blocks import number_events
from students.samplers.sampler import Sampler
from students.samplers.work import Asked, Schedule, Work
from students.session import Session
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.host import derived, learned, part_of
from teachers.positions import positions, sent, tell
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, of_rows


class PlannedSampler(Sampler):
    """A rule that looks at no prediction."""

    @abstractmethod
    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """The transition k, from t = 1 − k/steps to 1 − (k+1)/steps, that writes each open position.

        Args:
            canvas: open at what is written in these steps: a whole text, or one block of it.
            steps: (B,).

        Returns:
            (B, L) in [0, steps).
        """

    def order(
        self, canvas: Canvas, denoiser: Denoiser, steps: Tensor, process: MaskedProcess, randomness: Randomness
    ) -> Tensor:
        """The transition that writes each open position, of all of a row's: (B, L). The denoiser is not asked."""
        work = Work(Session(denoiser, canvas, 0), canvas, steps, process, randomness)
        self.enter(work)
        return self.of_blocks(work)

    def begin(self, work: Work) -> int:
        """Number each row's transitions: pass n serves the n-th of every row that has one."""
        self.enter(work)
        transition = self.of_blocks(work)
        where = work.canvas.open if work.until is None else work.canvas.open & (transition < work.until[:, None])
        event = derived(number_events, transition, where)
        work.schedule = Schedule(transition, event, event.amax(1) + 1)
        if not self.stop:
            learned(event, work.canvas.tokens)  # the first pass asks whether all rows are the same
            work.planned = planned_passes(event)
        if work.session.denoiser.collective:
            return work.passes
        return len(work.planned) if work.planned is not None else max(work.schedule.events.tolist(), default=0)

    def of_blocks(self, work: Work) -> Tensor:
        """`transitions` of each block behind those of the blocks before it: (B, L)."""
        if self.block_length is None:
            return self.transitions(work.canvas, work.steps, work.process, work.randomness)
        blocks, transition = work.blocks, torch.zeros_like(work.canvas.tokens)
        for block in range(max(blocks.count.tolist(), default=0)):
            # only rows that have such a block, so that no row's draws depend on how many blocks another one has
            rows = (blocks.count > block).nonzero().squeeze(1)
            here = blocks.number[rows] == block
            part = replace(work.canvas.rows(rows), open=here)
            number = torch.full_like(rows, block)
            own = self.transitions(part, blocks.steps_of(number, rows), work.process, of_rows(work.randomness, rows))
            transition[rows] += torch.where(here, blocks.before(number, rows)[:, None] + own, 0)
        return transition

    def ask(self, work: Work) -> Asked | None:
        """The positions that this pass writes."""
        transition, event, _ = work.schedule
        rows = self.asked_rows(work)
        if len(rows) == 0:
            return None
        now = derived(lambda event, rows: event[rows] == work.number, event, rows)
        if work.planned is not None:
            tell(now, work.planned[work.number][1])
        return Asked(rows, now, self.time(work, rows, now, transition[rows].masked_fill(~now, 0).amax(1)))

    def asked_rows(self, work: Work) -> Tensor:
        """(R,) the rows that take this pass."""
        if work.planned is not None:
            return work.planned[work.number][0] if work.number < len(work.planned) else work.steps.new_zeros(0)
        events = work.schedule.events
        self.move(work)
        events.masked_fill_(work.blocks.current == work.blocks.count, 0)  # a text has ended
        return (events > work.number).nonzero().squeeze(1)

    def time(self, work: Work, rows: Tensor, now: Tensor, transition: Tensor) -> Tensor:
        """(R,) t before a transition (R,) of some rows (R,), which writes at ``now`` (R, L)."""
        if self.block_tokens is None:
            return 1 - transition.double() / work.steps[rows]
        blocks = work.blocks
        block = torch.where(now, blocks.number[rows], 0).amax(1)
        own = 1 - (transition - blocks.before(block, rows)).double() / blocks.steps_of(block, rows)
        return self.time_within(work, rows, block, work.process.alpha(own))

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """All that is asked is committed."""
        return self.draw_tokens(work, asked, features), asked.positions


def planned_passes(event: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows of each pass, (R,), and the `positions` that it asks in them, (N,).

    The host waits for the device at most once, here, and not in the passes.

    Args:
        event: (B, L), as `number_events` says.
    """
    (copy,), parts = learned(event), []
    for number in range(int(copy.max()) + 1 if copy.numel() else 0):
        now = copy == number
        rows = now.any(1)
        parts += [rows.nonzero().squeeze(1), positions(now[rows])]
    if not parts:
        return []
    ends = list(accumulate(len(part) for part in parts))
    together = sent(torch.cat(parts), event.device)
    told = [part_of(together, slice(end - len(part), end)) for end, part in zip(ends, parts, strict=True)]
    return list(zip(told[::2], told[1::2], strict=True))
