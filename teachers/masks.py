"""4-D additive attention masks: the one lever that turns a causal language model into a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.canvas import Context
from teachers.denoiser import Attention
from teachers.errors import UserError


def attention_mask_4d(
    attention: Attention,
    length: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    block_size: int | None = None,
    padding: Tensor | None = None,
    columns: bool = False,
) -> Tensor:
    """Build the (1 or B, 1, L, L) additive mask: 0 where a query may look, the dtype's minimum where it may not.

    Arguments as `visible_mask`.
    """
    return additive(visible_mask(attention, length, device, block_size, padding, columns), dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where a query may look, the dtype's minimum where it may not."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def sees_all(length: int, block_size: int | None) -> bool:
    """Whether a row is one block, in which every query sees every key: flash attention takes no mask, and needs none.

    Args:
        block_size: None, and what else is no size, goes on to `blocks_of`, which refuses it.
    """
    return block_size is not None and length <= block_size


def visible_mask(
    attention: Attention,
    length: int,
    device: torch.device | str = "cpu",
    block_size: int | None = None,
    padding: Tensor | None = None,
    columns: bool = False,
) -> Tensor:
    """Where a query may look, (1 or B, 1, L, L) bool.

    Args:
        attention: "full", "block" or "causal".
        block_size: tokens a block; a query sees its own block and every earlier one.
        padding: (B, L), 1 for real tokens; padded keys are hidden from every query.
        columns: blocks are counted from a row's first column, padding included, not from its first real token.
    """
    position = torch.arange(length, device=device)
    if attention == "full":
        visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    elif attention == "causal":
        visible = (position[:, None] >= position)[None, None]
    else:
        block = blocks_of(length, device, block_size, None if columns else padding)
        visible = block[:, None, :, None] >= block[:, None, None, :]
    if padding is not None:
        visible = visible & padding.bool()[:, None, None, :]
    return visible


def doubled_mask(block: Tensor, padding: Tensor | None = None) -> Tensor:
    """Where a query may look in [x_t ⊕ x₀], a noised row and then its clean text: (1 or B, 1, 2L, 2L) bool.

    As BD3-LM trains (2503.09573): a noised token sees its own noised block and the earlier clean ones; a clean token
    sees clean blocks up to its own.

    Args:
        block: (1 or B, L) the number of each token's block.
        padding: (B, L), as in `visible_mask`.
    """
    query, key = block[:, None, :, None], block[:, None, None, :]
    noised = torch.cat([query == key, query > key], -1)
    clean = torch.cat([torch.zeros_like(query == key), query >= key], -1)
    visible = torch.cat([noised, clean], -2)
    if padding is not None:
        visible = visible & padding.bool().repeat(1, 2)[:, None, None, :]
    return visible


def context_mask(
    context: Context, length: int, dtype: torch.dtype, device: torch.device, padding: Tensor | None = None
) -> Tensor:
    """The (1 or B, 1, L, L) additive mask of a context, or (B, 1, 2L, 2L) where there is clean text beside the canvas.

    Args:
        length: L.
        padding: (B, L), as in `visible_mask`.
    """
    # 1. without blocks: all, or all that came before and what is open of the rest, (1 or B, 1, L, L)
    visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if context.opened is not None:
        visible = visible.tril() | context.opened[:, None]
    # 2. blocks: own and earlier ones, twice as wide with clean text, (B, 1, L, L) or (B, 1, 2L, 2L)
    block = context.blocks
    if block is not None:
        clean = context.clean is not None
        visible = doubled_mask(block) if clean else block[:, None, :, None] >= block[:, None, None, :]
    # 3. of one's own document
    if context.documents is not None:
        document = context.documents if context.clean is None else context.documents.repeat(1, 2)
        visible = visible & (document[:, None, :, None] == document[:, None, None, :])
    # 4. no padding
    if padding is not None:
        real = padding.bool() if context.clean is None else padding.bool().repeat(1, 2)
        visible = visible & real[:, None, None, :]
    return additive(visible, dtype)


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
