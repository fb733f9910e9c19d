"""What tokens look at: the one lever that turns a causal language model into a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from teachers.canvas import Context
from teachers.denoiser import Attention
from teachers.errors import UserError
from teachers.visibility import Visibility, same_rows


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where a query may look, the dtype's minimum where it may not."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def sees_all(length: int, block_size: int | None) -> bool:
    """Whether a row is one block, in which every query sees every key: flash attention takes no mask, and needs none.

    Args:
        block_size: None, and what else is no size, goes on to `blocks_of`, which refuses it.
    """
    return block_size is not None and length <= block_size


def visibility(
    attention: Attention,
    length: int,
    device: torch.device | str = "cpu",
    block_size: int | None = None,
    padding: Tensor | None = None,
    columns: bool = False,
) -> Visibility:
    """Where a query may look in rows of L tokens.

    Args:
        attention: "full", "block" or "causal".
        block_size: tokens a block; a query sees its own block and every earlier one.
        padding: (B, L), 1 for real tokens; padded keys are hidden from every query.
        columns: blocks are counted from a row's first column, padding included, not from its first real token.
    """
    sizes = {"full": max(1, length), "causal": 1, "block": block_size}
    counted = padding if attention == "block" and not columns else None
    block = blocks_of(length, device, sizes[attention], counted)
    return _up_to(block, None if padding is None else padding.bool())


def visible_in_context(
    context: Context, length: int, device: torch.device, padding: Tensor | None = None
) -> Visibility | Tensor:
    """Where a query may look in a context, rows being twice as long where there is clean text beside the canvas.

    As BD3-LM trains (2503.09573): a noised token sees its own noised block and the earlier clean ones; a clean token
    sees clean blocks up to its own.

    Args:
        length: L.
        padding: (B, L), as in `visibility`.

    Returns:
        The visibility; (B, 1, L, L) bool where later tokens are open one by one.
    """
    real = None if padding is None else padding.bool()
    # 1. blocks and documents as runs of tokens, and the first run of each document: (1 or B, L)
    block = torch.zeros(1, length, dtype=torch.int64, device=device)
    if context.blocks is not None:
        block = same_rows(context.blocks)
    first = torch.zeros_like(block)
    if context.documents is not None:
        begins = _changes(context.documents)
        block = (begins | _changes(block)).cumsum(1)
        first = torch.where(begins, block, 0).cummax(1).values
    # 2. the canvas alone
    if context.clean is None:
        seen = _up_to(block, real, first)
        if context.opened is None or context.blocks is not None:
            return seen
        earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return seen.dense() & (earlier | context.opened)[:, None]
    # 3. noised blocks, whose numbers are beyond those of the clean ones, and these beside them: (1 or B, 2L)
    return Visibility(
        torch.cat([block + length + 1, block], 1),
        first.repeat(1, 2),
        torch.cat([block, block + 1], 1),
        None if real is None else real.repeat(1, 2),
    )


def _up_to(block: Tensor, real: Tensor | None, first: Tensor | None = None) -> Visibility:
    """A query sees all blocks from ``first``, or from the start, up to its own."""
    return Visibility(block, torch.zeros_like(block) if first is None else first, block + 1, real)


def _changes(numbers: Tensor) -> Tensor:
    """(B, L) bool, True where a number is not the one before it, and at a row's first."""
    return functional.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0), value=True)


def blocks_of(length: int, device: torch.device | str, block_size: int | None, padding: Tensor | None) -> Tensor:
    """(1 or B, L) the number of each token's block, counted from the row's first real token.

    Raises:
        UserError: there is no block size.
    """
    if not block_size or block_size < 1:
        raise UserError(f"block attention needs a block size of at least 1, got {block_size}; set block_size")
    place = torch.arange(length, device=device)[None]
    if padding is not None:
        place = (padding.long().cumsum(1) - 1).clamp(min=0)
    return place // block_size


def block_numbers(places: Tensor, size: int) -> Tensor:
    """(B, L) places of tokens in their documents → (B, L) number of each one's block, which begins with its document.

    Args:
        size: tokens a block; the last one of a document may be shorter.
    """
    return (places % size == 0).long().cumsum(1) - 1
