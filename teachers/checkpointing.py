"""What a block keeps for its backward pass where it does not keep all of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

Checkpointing = bool | Literal["products"]
"""Whether activations within blocks are computed again; "products": all but those of matrix products and attention."""
PRODUCTS = [
    getattr(torch.ops.aten, name).default
    for name in (
        "mm", "addmm", "bmm", "baddbmm", "_grouped_mm",
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
]  # fmt: skip


def kept_products() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Contexts of a checkpointed pass and its repetition, which takes matrix products and attention from the pass.

    What is then computed again are norms, activations and sums: no product, so next to no operation. With torch's
    selective activation checkpointing.
    """
    return create_selective_checkpoint_contexts(PRODUCTS)
