"""4-D additive attention masks: the one lever that turns a causal language model into a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from teachers.denoiser import Attention
from teachers.errors import UserError


def attention_mask_4d(
    attention: Attention,
    length: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    block_size: int | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """Build the (1 or B, 1, L, L) additive mask: 0 where a query may look, the dtype's minimum where it may not.

    Args:
        attention: "full", "block" or "causal".
        block_size: tokens a block, counted from a row's first real token; a query sees its own block and every earlier
            one.
        padding: (B, L), 1 for real tokens; padded keys are hidden from every query.
    """
    position = torch.arange(length, device=device)
    if attention == "full":
        allowed = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    elif attention == "causal":
        allowed = (position[:, None] >= position)[None, None]
    else:
        if not block_size or block_size < 1:
            raise UserError(f"block attention needs a block size of at least 1, got {block_size}; set block_size")
        place = position[None] if padding is None else (padding.long().cumsum(1) - 1).clamp(min=0)
        block = place // block_size
        allowed = block[:, None, :, None] >= block[:, None, None, :]
    if padding is not None:
        allowed = allowed & padding.bool()[:, None, None, :]
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)
