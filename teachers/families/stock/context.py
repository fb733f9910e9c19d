"""A pass of a stock model in which each token looks at what a `Context` or a `Prefix` says, as in training."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from teachers.attention import Mask
from teachers.canvas import Canvas, Context
from teachers.prefix import Doubled


def states_in_context(model: PreTrainedModel, canvas: Canvas, mask: Mask, shift: bool) -> Tensor:
    """(B, L, H) final hidden states, each where its token is described, see `Denoiser.hidden_states`.

    Args:
        canvas: with a context.
        mask: of `teachers.masks.visible_in_context`.
        shift: the state before a token describes it: that of the clean text, where a block begins and there is one.
    """
    context = canvas.context
    assert context is not None
    # 1. the canvas, and the clean text beside it at the same positions, (B, L) or (B, 2L)
    positions = canvas.position_ids()
    if positions is None:
        positions = torch.arange(canvas.length, device=canvas.device).expand_as(canvas.tokens)
    tokens, read_at = canvas.tokens, positions
    if context.clean is not None:
        tokens, read_at = torch.cat([tokens, context.clean], 1), positions.repeat(1, 2)
    # 2. one pass, (B, L or 2L, H)
    states = model.base_model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=read_at,
        use_cache=False,
    ).last_hidden_state
    # 3. the state that describes each token of the canvas, (B, L, H)
    source = _sources(positions, context) if shift else torch.arange(canvas.length, device=canvas.device)[None]
    return states.gather(1, source[..., None].expand(len(canvas), -1, states.shape[-1]))


def states_behind_prefix(model: PreTrainedModel, both: Doubled, mask: Mask, first_position: int) -> Tensor:
    """(B, L, H) final hidden states of blocks behind their clean text, each where its token is described.

    Args:
        mask: of what is seen in both.
        first_position: what the network calls the place of a text's first token.
    """
    states = model.base_model(
        input_ids=both.tokens,
        attention_mask=mask,
        position_ids=both.positions + first_position,
        use_cache=False,
    ).last_hidden_state
    return both.gather(states)


def _sources(positions: Tensor, context: Context) -> Tensor:
    """(B, L) where, of L or 2L states, the one before each token is; a document's first token has its own."""
    length = positions.shape[1]
    place = torch.arange(length, device=positions.device).expand_as(positions)
    before = (place - 1).clamp(min=0)
    if context.clean is not None and context.blocks is not None:
        begins = context.blocks != context.blocks.gather(1, before)
        before = torch.where(begins, before + length, before)
    return torch.where(positions == 0, place, before)
