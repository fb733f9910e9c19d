"""Which keys a query sees, told by a few numbers a token: what masks of S² entries and sparse ones are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from teachers.host import alike, known

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TILE = 128
"""Queries and keys that `torch.nn.attention.flex_attention` computes or leaves out together: its own default."""
UNSEEN = -1
"""The block of a key that no query sees."""


@dataclass(frozen=True)
class Visibility:
    """A query sees the tokens of its own block, and those of blocks ``first`` ≤ number < ``end``.

    All are (1 or B, S), 1 where rows are alike.

    Attributes:
        block: int64, the number of each token's block, from 0.
        first, end: int64, of each query.
        real: bool, False at keys that no query sees; None: all can be seen.
    """

    block: Tensor
    first: Tensor
    end: Tensor
    real: Tensor | None = None

    def dense(self) -> Tensor:
        """(1 or B, 1, S, S) bool, True where a query sees a key."""
        key = self.block[:, None]
        block, first, end = (numbers[..., None] for numbers in (self.block, self.first, self.end))
        visible = ((block == key) | ((first <= key) & (key < end)))[:, None]
        return visible if self.real is None else visible & self.real[:, None, None]

    def tiled(self) -> BlockMask:
        """The same for flex attention, which passes over tiles where no query sees a key; nothing here has S² entries.

        A tile that is taken for partly visible may be all or not at all so: each of its entries is looked at.
        """
        from torch.nn.attention.flex_attention import BlockMask  # takes a moment, and few need it

        keys = self.block if self.real is None else torch.where(self.real, self.block, UNSEEN)
        block, first, end, keys = torch.broadcast_tensors(self.block, self.first, self.end, keys)
        length = block.shape[1]
        # 1. the least and the greatest number of a tile's queries (B, S / TILE, 1) and of its keys (B, 1, S / TILE)
        (own, own_to), (least, first_to), (end_from, most) = (_extremes(n, -1) for n in (block, first, end))
        key, key_to = _extremes(keys, -2)
        # 2. tiles that may have something visible, and those that have nothing else, (B, 1, S / TILE, S / TILE)
        some = ((key_to >= least) & (key < most)) | ((key_to >= own) & (key <= own_to))
        whole = ((key >= first_to) & (key_to < end_from)) | ((own == own_to) & (key == key_to) & (own == key))
        if length % TILE:  # the last tiles are cut off
            whole[:, -1] = whole[:, :, -1] = False
        partly = (some & ~whole)[:, None]
        return BlockMask.from_kv_blocks(
            *_listed(partly), *_listed(whole[:, None]), TILE, _rule(block, first, end, keys), (length, length)
        )


def same_rows(numbers: Tensor) -> Tensor:
    """(B, S) → (1, S) where the host knows that all rows are the same; else all of them."""
    return numbers[:1] if known(numbers) is not None and alike(numbers) else numbers


def _extremes(numbers: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(B, S) → the least and the greatest of each tile, with ``dim`` beside them."""
    missing = -numbers.shape[1] % TILE
    tiles = torch.cat([numbers, numbers[:, -1:].expand(-1, missing)], 1).unflatten(1, (-1, TILE))
    return tiles.amin(-1).unsqueeze(dim), tiles.amax(-1).unsqueeze(dim)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, Q, K) bool → how many tiles of keys each tile of queries has, and which, these first."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32), order.int()


def _rule(block: Tensor, first: Tensor, end: Tensor, keys: Tensor) -> Callable[..., Tensor]:
    """What flex attention asks of single entries."""
    if len(block) == 1:
        block, first, end, keys = block[0], first[0], end[0], keys[0]

        def seen_of_all(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            number = keys[key]
            return (block[query] == number) | ((first[query] <= number) & (number < end[query]))

        return seen_of_all

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        number = keys[row, key]
        return (block[row, query] == number) | ((first[row, query] <= number) & (number < end[row, query]))

    return seen
