"""Keys and values that a network keeps from pass to pass, and the part of a canvas that a pass sends.

A pass that finds the keys and values of some columns kept need not send these columns: what is sent reads them as if
they were there. What is kept lies where its column is, so that masks and positions are those of the whole canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from teachers.canvas import Canvas
from teachers.masks import blocks_of


class KeyValues:
    """Keys and values of every layer, each at its row and its column.

    It knows nothing of tokens: whoever keeps it must know what they were computed from. From the first pass on it takes
    B · L · Σ over layers of (width of the keys + width of the values) numbers, of the network's type, and never more.

    Args:
        rows: B. length: L.
    """

    def __init__(self, rows: int, length: int):
        self.rows, self.length = rows, length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, number: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, L, D) keys and values of a layer; zeros at first, since what no query may see is multiplied by 0.

        Args:
            keys, values: (n, N, Q, D), of whose kind they are.
        """
        if number not in self._layers:
            self._layers[number] = self._empty(keys), self._empty(values)
        return self._layers[number]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.rows, like.shape[1], self.length, like.shape[3])

    def move(self, places: list[int], origins: list[int]) -> None:
        """Put at each of some places what lay at its origin; the origins are the places in another order."""
        for kept in (kept for pair in self._layers.values() if places for kept in pair):
            kept[places] = kept[origins]


@dataclass(frozen=True)
class Window:
    """Which columns of R rows a pass sends, and where it finds the others.

    Attributes:
        kept: keys and values.
        first: the place in ``kept`` of the first row; the others follow.
        starts: the first column of each row that is sent.
        width: Q, how many columns are sent, the same of every row.
        keys: E, how many columns are read, from a row's first on: sent ones, and kept ones.
    """

    kept: KeyValues
    first: int
    starts: tuple[int, ...]
    width: int
    keys: int

    @property
    def aligned(self) -> bool:
        """Whether the same columns are sent of every row."""
        return len(set(self.starts)) == 1

    @cached_property
    def columns(self) -> Tensor:
        """(1 or R, Q) int64, the columns that are sent."""
        starts = self.starts[:1] if self.aligned else self.starts
        return torch.tensor(starts)[:, None] + torch.arange(self.width)

    def sent(self, values: Tensor) -> Tensor:
        """Of (1 or R, L) values, those at the columns that are sent: (1 or R, Q)."""
        if self.aligned:
            return values[:, self.starts[0] : self.starts[0] + self.width]
        return values.expand(len(self.starts), -1).gather(1, self.columns.to(values.device))

    def put(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values of a layer, and give back all that its queries read.

        Args:
            keys, values: (R, N, Q, D); or (1, N, Q, D) where all rows are the same, and one of them was sent.

        Returns:
            Two of (R or 1, N, E, D).
        """
        kept_keys, kept_values = self.kept.layer(layer, keys, values)
        return self._written(kept_keys, keys), self._written(kept_values, values)

    def _written(self, kept: Tensor, new: Tensor) -> Tensor:
        rows = kept[self.first : self.first + len(self.starts)]
        if self.aligned:
            rows[:, :, self.starts[0] : self.starts[0] + self.width] = new
        else:
            rows.scatter_(2, self.columns.to(new.device)[:, None, :, None].expand_as(new), new)
        return rows[: len(new), :, : self.keys]

    def sees_all(self, block_size: int | None, real: Tensor | None) -> bool:
        """Whether every query sees all that is read: flash attention takes no mask, and here needs none.

        Args:
            block_size: None for full attention, where a row is one block. real: as of `visible`.
        """
        if real is not None or not self.aligned:
            return False
        return block_size is None or self.keys <= (self.starts[0] // block_size + 1) * block_size

    def visible(self, block: Tensor, real: Tensor | None) -> Tensor:
        """Where a query may look, (1 or R, 1, Q, E) bool: at its own block and earlier ones, never at padding.

        Args:
            block: (1 or R, L), see `attention_blocks`. real: (R, L) or None, as of `Canvas`.
        """
        visible = self.sent(block)[:, None, :, None] >= block[:, None, None, : self.keys]
        return visible if real is None else visible & real[:, None, None, : self.keys]


def attention_blocks(canvas: Canvas, block_size: int | None, columns: bool) -> Tensor:
    """(1 or B, L) the number of each token's attention block, never falling from left to right.

    Args:
        block_size: None for full attention, where a row is one block.
        columns: see `teachers.denoiser.Denoiser`.
    """
    if block_size is None:
        return torch.zeros(1, canvas.length, dtype=torch.int64, device=canvas.device)
    return blocks_of(canvas.length, canvas.device, block_size, None if columns else canvas.real)


def sources(canvas: Canvas, shift: bool) -> Tensor:
    """(1 or B, L) the column whose state describes each token: its own, or under ``shift`` the one before it.

    A row's first token has none before it, and is described at its own column.
    """
    column = torch.arange(canvas.length, device=canvas.device)[None]
    if not shift:
        return column
    positions = canvas.position_ids()
    first = (column if positions is None else positions) == 0
    return torch.where(first, column, column - 1)
