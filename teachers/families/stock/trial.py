"""What no config says of a network, tried on a few tokens when it is loaded: whether its law is the model's own.

A dozen passes of a dozen tokens. Where there are no weights yet, because they are spread over processes or devices
while they are read, nothing is tried: the classes are the same there, and the head is the model's own in any case.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from teachers.cache import KeyValues, Window
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families.stock.anatomy import logits_of
from teachers.families.stock.denoiser import StockDenoiser
from teachers.source import reason
from teachers.weights import weight_of

TOKENS, BLOCK, PADDING = 4, 2, 2  # of a row, of a block, and beside a row [own]
CLOSE = 1e-5  # of the largest logit, between our law and the model's own in float32 [own]
ROUNDING = 16  # units in the last place of the largest logit: less of a change says nothing [own]
NOTHING, MUCH = 1e-3, 0.1  # of what the first token does to the last one's prediction [own]

CAUSAL = "is causal by its making"


class Effects(NamedTuple):
    """How much of a row's logits changes with one of its tokens, at most.

    Attributes:
        rounding: what may change by rounding alone.
        first: the first token changed, seen at the last position.
        last: the last token changed, seen at positions before it, in its own block where attention is in blocks.
        beyond: the same, seen in the block before; 0 where attention is not in blocks.
    """

    rounding: float
    first: float
    last: float
    beyond: float


def check_denoiser(denoiser: StockDenoiser, name: str) -> None:
    """Refuse a model that fewstep would read otherwise than it is; and see whether it can keep keys and values.

    Args:
        name: the model's, for the message.

    Raises:
        UserError: its logits are not those of its own class, it is causal by its making where it should be read in
            both directions, its blocks see later ones, or it takes padding for text.
    """
    spec = denoiser.spec
    words = [token for token in spec.tokens("cpu").tolist() if token not in (spec.eos_id, spec.pad_id)]
    if len(words) < 2 or not _is_whole(denoiser):
        return
    rows = _rows(torch.tensor(words, device=denoiser.device))
    rows[:, 1] = spec.mask_id
    training = denoiser.model.training  # a new network may still have dropout
    denoiser.model.eval()
    try:
        fault = _fault(denoiser, rows)
    except Exception as error:  # whatever a class meets that knows no such input
        fault = f"can not be read with {spec.attention} attention ({reason(error)})"
    if fault is None and "cache" in denoiser.capabilities and not _keeps(denoiser, rows):
        denoiser.capabilities -= {"cache"}
    denoiser.maskless = fault is None and spec.attention != "causal" and _needs_no_mask(denoiser, rows)
    denoiser.model.train(training)
    if fault is not None:
        raise UserError(
            f"model {name!r} is a {type(denoiser.model).__name__}, which {fault}; choose another model"
            + ", or attention full" * (spec.attention == "block" and CAUSAL not in fault)
        )


def _is_whole(denoiser: StockDenoiser) -> bool:
    """Whether all weights are in this process, on one device: not spread, sharded or yet to be read."""
    parameters = list(denoiser.parameters())
    return all(p.numel() > 0 and not p.is_meta for p in parameters) and len({p.device for p in parameters}) == 1


def check_autoregressive(model: PreTrainedModel, name: str) -> None:
    """Refuse a judge in which later tokens change the predictions of earlier ones.

    Raises:
        UserError: they do.
    """
    rows = _rows(torch.arange(len(weight_of(model.get_input_embeddings())))).to(model.device)
    with torch.no_grad():
        seen = effects(model(rows, use_cache=False).logits)
    if seen.last > max(seen.rounding, NOTHING * seen.first):
        raise UserError(
            f"judge {name!r} is a {type(model).__name__}, which reads what follows a token to predict it; set "
            "evaluate.judge to a causal language model"
        )


def _rows(words: Tensor) -> Tensor:
    """(3, `TOKENS`): a row, the same with another last token, and the same with another first one."""
    rows = words[torch.linspace(0, len(words) - 1, TOKENS).long()].repeat(3, 1)
    rows[1, -1], rows[2, 0] = words[0], words[-1]
    return rows


@torch.no_grad()
def _fault(denoiser: StockDenoiser, rows: Tensor) -> str | None:
    """What is wrong with how we read a model, in words."""
    spec, model, words = denoiser.spec, denoiser.model, denoiser.spec.tokens(rows.device)
    block_size = BLOCK if spec.attention == "block" else None
    # 1. the model's own logits, and what our head makes of its hidden states, (3, L, V)
    inputs = denoiser.inputs(Canvas.of(rows, spec.mask_id), block_size=block_size)
    own = model(**inputs, use_cache=False).logits
    if own.shape[-1] != spec.vocabulary:
        return f"gives {own.shape[-1]} logits where its output layer has {spec.vocabulary} rows"
    ours = logits_of(model, model.base_model(**inputs, use_cache=False).last_hidden_state)
    own, ours = own[..., words], ours[..., words]
    difference, scale = float((own - ours).abs().max()), float(own.abs().max())
    if not difference <= max(CLOSE, torch.finfo(own.dtype).eps) * scale:  # NaN is a difference too
        return f"gives other logits than its last hidden states ({difference:.1e} apart)"
    # 2. what each position sees
    seen = effects(own, block_size)
    if spec.attention != "causal" and seen.first > seen.rounding and seen.last <= NOTHING * seen.first:
        return f"{CAUSAL}: a later token changes nothing before it, so it can be no denoiser"
    if spec.attention == "block" and seen.beyond > max(seen.rounding, NOTHING * seen.first):
        return "reads later blocks despite block attention"
    # 3. the first row beside padding, which some releases count as columns
    if denoiser.columns:
        return None
    padding = _padding_effect(denoiser, rows[0], own[0], block_size)
    if padding > max(seen.rounding, MUCH * seen.first):
        return "takes padding for text"
    return None


@torch.no_grad()
def _keeps(denoiser: StockDenoiser, rows: Tensor) -> bool:
    """Whether the second half of rows alone, beside what is kept of the first, has the states of a whole pass."""
    canvas, store = Canvas.of(rows, denoiser.spec.mask_id), KeyValues(*rows.shape)
    whole, half = (Window(store, 0, (start,) * len(rows), TOKENS - start, TOKENS) for start in (0, TOKENS // 2))
    try:
        states, part = (denoiser.window_features(canvas, window) for window in (whole, half))
    except Exception:  # whatever a class meets that keeps them in its own way
        return False
    close = max(NOTHING, ROUNDING * torch.finfo(states.dtype).eps)
    return float((states[:, TOKENS // 2 :] - part).abs().max()) <= close * float(states.abs().max())


@torch.no_grad()
def _needs_no_mask(denoiser: StockDenoiser, rows: Tensor) -> bool:
    """Whether the states of one block, and of its second half beside what is kept, are the same without a mask.

    A class may make a mask of its own where it is given none, or read from left to right.
    """
    canvas, states = Canvas.of(rows, denoiser.spec.mask_id), []
    for denoiser.maskless in (False, True):
        store = KeyValues(*rows.shape)
        windows = [Window(store, 0, (start,) * len(rows), TOKENS - start, TOKENS) for start in (0, TOKENS // 2)]
        try:
            inputs = denoiser.inputs(canvas, block_size=TOKENS)
            parts = [denoiser.model.base_model(**inputs, use_cache=False).last_hidden_state]
            if "cache" in denoiser.capabilities:
                parts += [denoiser.window_features(canvas, window) for window in windows]
        except Exception:  # whatever a class meets that expects a mask
            return False
        states.append(torch.cat(parts, 1))
    masked, bare = states
    close = max(CLOSE, ROUNDING * torch.finfo(masked.dtype).eps)
    return float((masked - bare).abs().max()) <= close * float(masked.abs().max())


def effects(logits: Tensor, block_size: int | None = None) -> Effects:
    """What changed with a token, of the (3, L, V) logits of `_rows`."""
    last, first = ((logits[0] - logits[row]).abs().amax(-1).tolist() for row in (1, 2))
    own_block = 0 if block_size is None else block_size
    rounding = ROUNDING * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    return Effects(rounding, first[-1], max(last[own_block:-1]), max(last[:own_block], default=0.0))


def _padding_effect(denoiser: StockDenoiser, row: Tensor, own: Tensor, block_size: int | None) -> float:
    """By how much a row's logits ``own`` (L, V) change at most with padding beside it, which holds its first token."""
    padded = row[0].repeat(2, TOKENS + PADDING)
    real = torch.zeros_like(padded, dtype=torch.bool)
    real[0, PADDING:] = real[1, :TOKENS] = True
    padded[0, PADDING:] = padded[1, :TOKENS] = row
    canvas = Canvas.of(padded, denoiser.spec.mask_id, real)
    logits = denoiser.model(**denoiser.inputs(canvas, block_size=block_size), use_cache=False).logits
    logits = logits[..., denoiser.spec.tokens(row.device)]
    return max(float((part - own).abs().max()) for part in (logits[0, PADDING:], logits[1, :TOKENS]))
