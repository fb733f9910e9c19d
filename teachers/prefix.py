"""Blocks that are read behind the clean text before them: all blocks of a text in one pass, or each in its own.

A network whose attention has the same blocks reads [x_t ⊕ x₀], noised blocks and then the clean text, as BD3-LM trains
(2503.09573). One that looks at whole rows, or at larger blocks, reads each block on a canvas of its own: clean text
before it, and masks behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teachers.canvas import Canvas, Prefix
from teachers.denoiser import DenoiserSpec
from teachers.host import derived, learned
from teachers.positions import at, positions, sent
from teachers.visibility import Visibility


def prefix_of(canvas: Canvas) -> Prefix:
    """What is before the rows of a canvas of blocks."""
    assert canvas.prefix is not None, "rows that are blocks have a prefix"
    assert canvas.real is None, "they hold no padding"
    assert canvas.context is None, "they look at their own block and at what is before it"
    return canvas.prefix


def split(canvas: Canvas, text: Tensor, size: int) -> Canvas:
    """Whole rows (B, T) as their N = T / ``size`` blocks, from left to right, one text after the other: (B · N, size).

    Args:
        text: (B, T) clean tokens.
    """
    rows, length = canvas.tokens.shape
    assert length % size == 0, "a text is cut into whole blocks"
    count = length // size
    row = sent(torch.arange(rows).repeat_interleave(count), canvas.device)
    block = sent(torch.arange(count).repeat(rows), canvas.device)
    return Canvas(
        canvas.tokens.reshape(-1, size),
        canvas.open.reshape(-1, size),
        time=None if canvas.time is None else canvas.time[row],
        prefix=Prefix(text[row], block, row, rows),
    )


def asked_rows(canvas: Canvas, select: Tensor) -> tuple[Canvas, Tensor]:
    """The rows that have a position in ``select`` (B, L), at least one row, and their part of it."""
    rows = derived(_asked, select)
    return canvas.rows_where(rows), select if len(positions(rows)) == len(select) else at(select, rows)


def _asked(select: Tensor) -> Tensor:
    rows = select.any(1)
    rows[:1] |= ~rows.any()
    return rows


@dataclass(frozen=True)
class Doubled:
    """T texts as one row each: R noised blocks of L tokens, M of a text at most, and then the clean text before them.

    Attributes:
        tokens: (T, S), S = M · L + P, P tokens of clean text. positions: (T, S) the place of each in its text.
        seen: where a query may look.
        text: (R,) which row of these a block is in.
        source: (R, L) in which columns the states are that describe the tokens of a block.
    """

    tokens: Tensor
    positions: Tensor
    seen: Visibility
    text: Tensor
    source: Tensor

    def gather(self, states: Tensor) -> Tensor:
        """(T, S, H) states of all that was read → (R, L, H) those that describe the blocks."""
        return states[self.text[:, None], self.source]


def doubled(canvas: Canvas, shift: bool) -> Doubled:
    """[x_t ⊕ x₀] of the texts that the rows of a canvas are blocks of.

    A noised token sees its own noised block and earlier clean ones; a clean token clean blocks up to its own. Places of
    a text that has fewer blocks here than another hold tokens that no other sees.

    Args:
        shift: the state before a token describes it: that of the clean text, where a block begins.
    """
    prefix, size, device = prefix_of(canvas), canvas.length, canvas.device
    inside = torch.arange(size, device=device)
    # 1. the text of each block, and its place among the noised blocks of that text: (R,) each
    text, place, texts, most = _places(prefix)
    length = _clean(prefix, size)
    # 2. tokens and positions, (T, M, L) and (T, P), and the number of the block that each is of, (T, M)
    noised = canvas.tokens.new_zeros(texts, most, size)
    number = canvas.tokens.new_zeros(texts, most)
    clean = canvas.tokens.new_zeros(texts, length)
    noised[text, place], number[text, place] = canvas.tokens, prefix.block
    clean[text] = prefix.text[:, :length]
    before = torch.arange(length, device=device)
    noised_at = (number[..., None] * size + inside).flatten(1)
    read_at = torch.cat([noised_at, before.expand(texts, length)], 1)
    # 3. what sees what, (T, S): noised blocks themselves and clean ones before, clean blocks those up to their own; the
    # numbers of noised blocks are beyond those of clean ones
    slot, block = torch.arange(most * size, device=device) // size + length // size, before // size
    end = torch.cat([noised_at // size, (block + 1).expand(texts, -1)], 1)
    if prefix.texts is not None:  # which have the same blocks in the same order
        end = end[:1]
    seen = Visibility(torch.cat([slot, block])[None], torch.zeros_like(end[:1]), end)
    # 4. where the states are that describe the blocks, (R, L); the first token of a text is described by its own
    source = place[:, None] * size + inside
    if shift:
        begin = torch.where(prefix.block > 0, most * size + prefix.block * size - 1, source[:, 0])
        source = torch.cat([begin[:, None], source[:, :-1]], 1)
    return Doubled(torch.cat([noised.flatten(1), clean], 1), read_at, seen, text, source)


def _places(prefix: Prefix) -> tuple[Tensor, Tensor, int, int]:
    """Of R blocks (R,) which text each is of, and (R,) which of that text's blocks; the texts, and the most of one."""
    if prefix.texts is not None:
        most = len(prefix.owner) // max(1, prefix.texts)
        rank = torch.empty_like(prefix.owner)
        rank[prefix.owner.argsort(stable=True)] = torch.arange(len(rank), device=rank.device)
        return rank // most, rank % most, prefix.texts, most
    _, text, counts = learned(prefix.owner)[0].unique(return_inverse=True, return_counts=True)
    order = text.argsort(stable=True)
    place = torch.empty_like(text)
    place[order] = torch.arange(len(text)) - (counts.cumsum(0) - counts)[text[order]]
    device = prefix.owner.device
    return sent(text, device), sent(place, device), len(counts), int(counts.max())


def _clean(prefix: Prefix, size: int) -> int:
    """How many tokens of clean text are before the last of the blocks, of ``size`` tokens."""
    if prefix.texts is not None:
        return prefix.text.shape[1] - size
    return int(learned(prefix.block)[0].max()) * size


def in_text(canvas: Canvas, mask_id: int, end: int) -> Canvas:
    """Each block on a canvas of its own, (R, ``end``): the clean text before it, and masks behind it."""
    prefix, size = prefix_of(canvas), canvas.length
    column = torch.arange(end, device=canvas.device)
    begin = prefix.block[:, None] * size
    tokens = torch.where(column < begin, prefix.text[:, :end], mask_id)
    open_ = column >= begin + size
    here = (column >= begin) & ~open_
    tokens = tokens.masked_scatter(here, canvas.tokens)
    return replace(canvas, tokens=tokens, open=open_.masked_scatter(here, canvas.open), prefix=None)


def states_in_text(states: Callable[[Canvas], Tensor], canvas: Canvas, spec: DenoiserSpec) -> Tensor:
    """What a network makes of each block in a pass of its own: (R, L, …).

    A network that looks at whole rows reads masks behind a block to the end of the text, and with them the time; one
    that looks at blocks reads to the end of its own one.

    Args:
        states: (R, T, …) of a canvas (R, T).
    """
    prefix, size = prefix_of(canvas), canvas.length
    end = prefix.text.shape[1]
    if spec.attention == "block":
        assert spec.block_size is not None
        end = min(end, -(-(_clean(prefix, size) + size) // spec.block_size) * spec.block_size)
    else:
        canvas = replace(canvas, time=None)
    read = states(in_text(canvas, spec.mask_id, end))
    column = prefix.block[:, None] * size + torch.arange(size, device=canvas.device)
    return read[torch.arange(len(canvas), device=canvas.device)[:, None], column]
