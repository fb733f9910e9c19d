"""What a block keeps for its backward pass where it does not keep all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch.nn import functional
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
    once, again = create_selective_checkpoint_contexts(PRODUCTS)
    return _with_own_linear(once), _with_own_linear(again)


@contextmanager
def _with_own_linear(context: AbstractContextManager[object]) -> Iterator[None]:
    """The context, with torch's linear layer in it.

    DeepSpeed puts another in its place for a whole process as soon as weights are sharded, which adds a bias into the
    product that is kept: taken again, it would have the bias twice.
    """
    before = functional.linear
    functional.linear = torch.ops.aten.linear
    try:
        with context:
            yield
    finally:
        functional.linear = before
