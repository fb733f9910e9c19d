"""Which columns of its rows a session must send through the network, and which it has the keys and values of.

In attention that is in blocks, what a network computes at a column depends on the tokens of its block and of earlier
ones, and on nothing else. So the keys and values of a block are still those of the canvas for as long as these tokens
are those that they were computed from. A pass sends what begins with the first block of which this is not so, and ends
with the last block that is asked. This is exact for every rule, for edits and remasking too: equality of tokens decides
alone. A block that was just finished is stored by the first pass of the next one.

Under full attention a row is one block, and all of it changes with every token. `Approximation` is what was published
for it: there the keys and values of an earlier canvas stand for those of the present one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from teachers.cache import KeyValues, Window, attention_blocks, sources
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser

UNKNOWN, PADDING = -1, -2
"""In place of a token: what is kept of the column is of no use, and nobody reads the column."""
Approximation = Literal["prefix", "dual"]
"""Fast-dLLM's caches (2505.22618): all passes of a row at a block of its sampler, but for the first, send that block
and what follows ("prefix"), or that block alone ("dual"); all else is as the first pass had it. In the blocks of block
attention, "dual" is the cache of Fast-dLLM v2 (2509.26328)."""


class Spans(NamedTuple):
    """What R rows need, (R,) each.

    Attributes:
        start, end: the columns to send.
        keys: how many columns are read, from the first on.
        exact: before which column the keys and values of a pass are those of the canvas.
    """

    start: Tensor
    end: Tensor
    keys: Tensor
    exact: Tensor


class Group(NamedTuple):
    """Rows that go through the network together.

    Attributes:
        members: which of the R rows. starts: the first column that each sends.
        width: how many each sends. keys: how many columns are read, from the first on.
    """

    members: list[int]
    starts: tuple[int, ...]
    width: int
    keys: int

    def sorted(self, key: Callable[[int], int]) -> Group:
        """With its members in another order."""
        members, starts = zip(
            *sorted(zip(self.members, self.starts, strict=True), key=lambda m: key(m[0])), strict=True
        )
        return self._replace(members=list(members), starts=starts)


class RowCache:
    """The rows of a canvas, with the keys and values of what was sent of them.

    Args:
        denoiser: with the capability "cache".
        canvas: all rows, as they are at first.
    """

    def __init__(self, denoiser: Denoiser, canvas: Canvas, approximation: Approximation | None = None):
        self.denoiser, self.approximation = denoiser, approximation
        self._kept = KeyValues(len(canvas), canvas.length)
        self._rows = list(range(len(canvas)))  # whose keys and values lie at each place
        self._tokens = torch.full_like(canvas.tokens, UNKNOWN)  # (B, L) what they were computed from
        self._block = self._tokens[:, 0].clone()  # (B,) the first column of the block whose surroundings are kept

    def features(self, canvas: Canvas, rows: Tensor, select: Tensor, here: Tensor | None = None) -> tuple[Tensor, int]:
        """What the denoiser's head reads at N selected positions, (N, H), and how many tokens were sent for that.

        Args:
            canvas: the R rows as they are now. rows: (R,) their indices among all. select: (R, L) bool, some of each.
            here: (R, L) the block of the sampler that each row is at, which an approximation follows.
        """
        # 1. which states describe what is asked, and which tokens are not those that keys and values are of
        source = sources(canvas, self.denoiser.spec.shift).expand_as(select)
        first, last = source.masked_fill(~select, canvas.length - 1).amin(1), source.masked_fill(~select, 0).amax(1)
        tokens = canvas.tokens if canvas.real is None else canvas.tokens.masked_fill(~canvas.real, PADDING)
        known = self._tokens[rows]
        # 2. what each row sends, and which rows go together
        blocks = attention_blocks(canvas, self.denoiser.spec.block_size, self.denoiser.columns)
        blocks = blocks.expand_as(tokens).contiguous()
        spans = exact_spans(blocks, known != tokens, first, last)
        if self.approximation is not None:
            assert here is not None, "an approximation follows the blocks of its sampler"
            spans = self._approximate(spans, blocks, rows, here, first, last)
        groups = self._arranged(grouped(spans, together=self.approximation is None), rows.tolist())
        # 3. the passes; (Σ R·Q, H) states, and which of them is that of column 0 of each row
        states, zero = self._send(canvas, groups, alike=canvas.real is None and _alike(groups, tokens, known))
        # 4. what is known from now on
        self._tokens[rows], sent = remembered(known, tokens, groups, spans.exact)
        return states[(zero[:, None] + source)[select]], sent

    def _approximate(
        self, spans: Spans, blocks: Tensor, rows: Tensor, here: Tensor, first: Tensor, last: Tensor
    ) -> Spans:
        """The sampler's blocks, wherever what surrounds them is kept as their own first pass had it.

        Args:
            blocks, first, last: as of `exact_spans`.
        """
        start, end = here.int().argmax(1), here.shape[1] - here.flip(1).int().argmax(1)
        keys = _end(blocks, end - 1)
        if self.approximation == "prefix":
            end = keys
        # 1. all that is read was sent by an earlier pass of the block; under a shift, its first token is read before it
        kept = (self._block[rows] == start) & (first >= start) & (last < end)
        # 2. or it is by this one
        self._block[rows] = torch.where(kept | (spans.end >= keys), start, UNKNOWN)
        return Spans(
            torch.where(kept, start, spans.start), torch.where(kept, end, spans.end),
            torch.where(kept, keys, spans.keys), spans.exact.masked_fill(kept, 0),
        )  # fmt: skip

    def _arranged(self, groups: list[Group], rows: list[int]) -> list[Group]:
        """Bring the rows of each group together, the first group at the first places, where as few as possible move.

        Args:
            rows: the index, among all, of each row that the groups are of.

        Returns:
            The groups, their members as they lie.
        """
        # 1. which row comes to which place
        together = [{rows[r] for r in group.members} for group in groups]
        order: list[int] = []
        for group in [*together, set(self._rows).difference(*together)]:
            present = self._rows[len(order) : len(order) + len(group)]
            coming = iter(sorted(group.difference(present)))
            order += [row if row in group else next(coming) for row in present]
        # 2. those that move
        place_of = {row: place for place, row in enumerate(self._rows)}
        moved = [place for place, row in enumerate(order) if row != self._rows[place]]
        self._kept.move(moved, [place_of[order[place]] for place in moved])
        self._rows = order
        place_of = {row: place for place, row in enumerate(order)}
        return [group.sorted(lambda r: place_of[rows[r]]) for group in groups]

    def _send(self, canvas: Canvas, groups: list[Group], alike: bool) -> tuple[Tensor, Tensor]:
        """Send each group; where all rows are ``alike``, one of them.

        Returns:
            (S, H) states of all columns that were sent; (R,) which of them is, or would be, that of a row's column 0.
        """
        states, zero, sent, place = list[Tensor](), [0] * len(canvas), 0, 0
        for group in groups:
            window = Window(self._kept, place, group.starts, group.width, group.keys)
            part = group.members[:1] if alike else group.members
            whole = part == list(range(len(canvas)))
            read = canvas if whole else canvas.rows(torch.tensor(part, device=canvas.device))
            states.append(self.denoiser.window_features(read, window).flatten(0, 1))
            for number, (r, start) in enumerate(zip(group.members, group.starts, strict=True)):
                zero[r] = sent + (0 if alike else number * group.width) - start
            sent, place = sent + len(part) * group.width, place + len(group.members)
        return torch.cat(states), torch.tensor(zero, device=canvas.device)


def exact_spans(blocks: Tensor, changed: Tensor, first: Tensor, last: Tensor) -> Spans:
    """From the first block that changed, or the first column that is read, to the end of the last block that is.

    Args:
        blocks: (R, L) see `teachers.cache.attention_blocks`.
        changed: (R, L) where tokens are not those that keys and values were computed from.
        first, last: (R,) of the columns whose states are asked.
    """
    begin = torch.searchsorted(blocks, blocks.gather(1, changed.int().argmax(1, keepdim=True))).squeeze(1)
    begin = torch.where(changed.any(1), torch.minimum(begin, first), first)
    end = _end(blocks, last)
    return Spans(begin, end, end, end)


def _end(blocks: Tensor, column: Tensor) -> Tensor:
    """(R,) one past the last column of the block that each row's ``column`` (R,) is in."""
    return torch.searchsorted(blocks, blocks.gather(1, column[:, None]), right=True).squeeze(1)


def grouped(spans: Spans, together: bool) -> list[Group]:
    """Rows that send equally many columns.

    Args:
        together: all rows, each of which sends as many as the one that needs most; what it sends besides are columns
            before its own, which come out as they are kept, or where there are too few of these, later ones.
    """
    starts, ends, keys = torch.stack(spans[:3]).tolist()
    widths = [end - start for start, end in zip(starts, ends, strict=True)]
    if together:
        widths = [max(widths)] * len(widths)
    groups = []
    for width in sorted(set(widths)):
        members = [r for r, own in enumerate(widths) if own == width]
        begins = tuple(max(0, ends[r] - width) for r in members)
        read = max(*(keys[r] for r in members), max(begins) + width)
        groups.append(Group(members, begins, width, read))
    return groups


def remembered(known: Tensor, tokens: Tensor, groups: list[Group], exact: Tensor) -> tuple[Tensor, int]:
    """(R, L) the tokens that keys and values are of after a pass, and how many tokens it sent.

    Args:
        known: (R, L) before it. tokens: (R, L) the rows. exact: see `Spans`.
    """
    column = torch.arange(tokens.shape[1], device=tokens.device)
    sent = torch.zeros_like(tokens, dtype=torch.bool)
    for group in groups:
        start = torch.tensor(group.starts, device=tokens.device)[:, None]
        sent[group.members] = (column >= start) & (column < start + group.width)
    now = tokens.masked_fill(column >= exact[:, None], UNKNOWN)
    return torch.where(sent, now, known), sum(len(group.members) * group.width for group in groups)


def _alike(groups: list[Group], *rows: Tensor) -> bool:
    """Whether all rows send the same columns, and are the same in each of some (R, L) tensors."""
    if len(groups) > 1 or len(set(groups[0].starts)) > 1:
        return False
    return all(bool((values == values[:1]).all()) for values in rows)
