"""Blocks that are written one after the other, from left to right (semi-autoregressive sampling).

Under block attention they are counted as the attention counts them, so that a prompt may end within one; elsewhere from
a row's first open column on, as LLaDA's sampler does after its prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.errors import UserError


class Blocks:
    """Where each row's blocks are, which of them it is at, and how many passes they may take.

    A row's passes are shared out evenly among the blocks that hold something to write, the remainder to the first ones;
    what a block does not need is not handed on [as released].

    Args:
        steps: (B,) passes of each row; of each of its blocks where they are counted so (``each``).
        length: tokens of a block; None for one block.

    Attributes:
        number: (B, L) which of the row's blocks writes a position, from 0 on; −1 where nothing is written.
        place: (B, L) where a position is, counted in blocks from where blocks are counted; −1 for padding.
        count: (B,) blocks of each row. steps: (B,) passes of each row, all blocks together.
        current: (B,) the block that a row is at; ``count`` where all are written. began: (B,) its first pass.
        first: (B, L) where a block of the denoiser's own attention begins.
    """

    def __init__(self, canvas: Canvas, denoiser: Denoiser, steps: Tensor, length: int | None, each: bool = False):
        self.number, self.count = block_numbers(canvas, denoiser, length)
        self.steps = steps * self.count.clamp(min=1) if each else steps
        self.place = torch.zeros_like(canvas.tokens) if length is None else places(canvas, denoiser) // length
        if canvas.real is not None:
            self.place = self.place.masked_fill(~canvas.real, -1)
        self.current, self.began = torch.full_like(self.count, -1), torch.zeros_like(self.count)
        self.first = torch.zeros_like(canvas.open)
        if length is not None and denoiser.spec.block_size is not None:
            self.first = places(canvas, denoiser) % denoiser.spec.block_size == 0
        if length is not None and bool((self.steps < self.count).any()):  # a single block takes any number
            row = int((self.count - self.steps).argmax())
            raise UserError(
                f"steps is {int(self.steps[row])}, but a text has {int(self.count[row])} blocks of {length} tokens and "
                f"each takes a pass or more; set steps to at least {int(self.count[row])}, a larger block_length, or "
                "budget: block, which counts the steps of each block"
            )

    def move(self, current: Tensor, number: int) -> None:
        """Rows whose block is not what it was begin another one in pass ``number``."""
        self.began = torch.where(current != self.current, number, self.began)
        self.current = current

    def at(self, number: int) -> Tensor:
        """(B,) the block that a row's pass of this number is of, where each block takes all of its passes."""
        count = self.count.clamp(min=1)
        each, longer = self.steps // count, self.steps % count
        left = number - longer * (each + 1)
        block = torch.where(left < 0, number // (each + 1), longer + left.clamp(min=0) // each)
        return torch.minimum(block, self.count)

    def here(self) -> Tensor:
        """(B, L) what the current block was to write."""
        return self.number == self.current[:, None]

    def extent(self) -> Tensor:
        """(B, L) all of the current block, whether it was to be written or not."""
        return self.place == torch.where(self.here(), self.place, -2).amax(1, keepdim=True)

    def around(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(R, L) the whole block of some ``positions`` (R, L) of each of some rows (R,), prompts that end in it too."""
        place = self.place[rows]
        return place == torch.where(positions, place, -2).amax(1, keepdim=True)

    def budget(self) -> Tensor:
        """(B,) how many passes the current block may take."""
        return self.steps_of(self.current, slice(None))

    def steps_of(self, block: Tensor, rows: Tensor | slice) -> Tensor:
        """(R,) how many passes a ``block`` (R,) of each of some rows may take."""
        steps, count = self.steps[rows], self.count[rows].clamp(min=1)
        return steps // count + (block < steps % count)

    def before(self, block: Tensor, rows: Tensor | slice) -> Tensor:
        """(R,) how many passes all blocks before that ``block`` may take."""
        steps, count = self.steps[rows], self.count[rows].clamp(min=1)
        return block * (steps // count) + torch.minimum(block, steps % count)


def block_numbers(canvas: Canvas, denoiser: Denoiser, length: int | None) -> tuple[Tensor, Tensor]:
    """Number each row's blocks of ``length`` tokens that have open positions; None for one block.

    Returns:
        (B, L) the number of a position's block, −1 where it is not open; (B,) how many there are.
    """
    if length is None:
        return canvas.open.long() - 1, canvas.open.any(1).long()
    number = number_events(places(canvas, denoiser) // length, canvas.open)
    return number, number.amax(1) + 1


def places(canvas: Canvas, denoiser: Denoiser) -> Tensor:
    """(B, L) the place of each position, from where blocks are counted; below 0 in front of it."""
    column = torch.arange(canvas.length, device=canvas.device).expand_as(canvas.tokens)
    if denoiser.spec.attention != "block":
        return column - canvas.open.int().argmax(1, keepdim=True)
    position = None if denoiser.columns else canvas.position_ids()
    return column if position is None else position


def number_events(transition: Tensor, where: Tensor) -> Tensor:
    """Number each row's distinct transitions at the positions of ``where`` (B, L) in order.

    Returns:
        (B, L) the number of the one that writes each of these positions, −1 elsewhere.
    """
    # 1. a row's transitions in order, (B, L); those that do not count are behind all others
    never = torch.iinfo(transition.dtype).max
    ordered, order = transition.masked_fill(~where, never).sort(dim=1)
    # 2. how many other transitions come before each
    rank = torch.zeros_like(ordered)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    # 3. back to the positions
    return torch.empty_like(rank).scatter_(1, order, rank).masked_fill_(~where, -1)
