"""Attention under masks of two kinds: those with an entry for each query and key, and tiles for flex attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from teachers.compilation import prepare_compiling

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = "Tensor | BlockMask"
"""An entry for each query and key; or tiles of such entries, those left out in which nothing is visible."""


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None = None, scale: float | None = None
) -> Tensor:
    """(B, N, Q, D) queries, (B, M, K, D) keys and values, N a multiple of M → (B, N, Q, D).

    Args:
        mask: a tensor that broadcasts to (B, N, Q, K), bool or added to the scores; or tiles, which are computed by
            `torch.nn.attention.flex_attention`: on a CPU only without a gradient. None: every query sees every key.
        scale: of the scores; None for 1 / √D.
    """
    grouped = queries.shape[1] != keys.shape[1]
    if mask is None or isinstance(mask, Tensor):
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    flex = _flex(queries.device.type != "cpu")
    return flex(queries, keys, values, block_mask=mask, scale=scale, enable_gqa=grouped)


@cache
def _flex(compiled: bool) -> Callable[..., Any]:
    """Flex attention, which makes no scores where it is compiled; on a CPU that fails as soon as lengths differ."""
    from torch.nn.attention.flex_attention import flex_attention  # takes a moment, and few need it

    prepare_compiling()
    return torch.compile(flex_attention, fullgraph=True) if compiled else flex_attention
