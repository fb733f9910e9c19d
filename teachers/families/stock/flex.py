"""Stock models whose attention takes tiles for a mask, and is what it was under every other one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from teachers.attention import Mask, attention
from teachers.canvas import Canvas, Context
from teachers.errors import UserError
from teachers.families.stock.context import states_in_context
from teachers.masks import additive
from teachers.visibility import Visibility

NAME = "sdpa_or_flex"
CLOSE, ROUNDING = 1e-5, 16  # of the largest state; or units in its last place [own]


def accept_tiles(model: PreTrainedModel) -> bool:
    """Let a model's attention take tiles; whether it does, and its states stay what they are."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
        if not _takes_tiles(model):
            model.set_attn_implementation("sdpa")
    return model.config._attn_implementation == NAME


@torch.no_grad()
def _takes_tiles(model: PreTrainedModel) -> bool:
    """Whether two documents of two tokens have the same states; computed without compiling for so few tokens."""
    tokens = torch.arange(4, device=model.device)[None]
    canvas = Canvas(tokens, tokens < 0, context=Context(tokens // 2))
    seen = Visibility(tokens // 2, tokens // 2, tokens // 2)
    try:
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not compiled
            dense, tiled = (
                states_in_context(model, canvas, mask, shift=False)
                for mask in (additive(seen.dense(), model.dtype), seen.tiled())
            )
    except Exception:  # whatever a class meets that asks of its mask what only tensors have
        return False
    close = max(CLOSE, ROUNDING * torch.finfo(dense.dtype).eps)
    return float((dense - tiled).abs().max()) <= close * float(dense.abs().max())


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (B, N, S, D) each → (B, S, N, D)."""
    if attention_mask is None or isinstance(attention_mask, Tensor):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    special = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if special or dropout:
        raise UserError(
            f"{type(module).__name__} computes attention with {special[0] if special else 'dropout'}, which fewstep's "
            "flex attention does not; leave train.flex_attention out"
        )
    return attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
