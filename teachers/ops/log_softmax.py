"""Log-probabilities of the tokens that text can have, from logits of any precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from teachers.ops.parts import row_parts


class _LogSoftmaxWithout(torch.autograd.Function):
    """float32 log_softmax over the columns that are not excluded, −∞ in the others; it keeps its output alone."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, excluded: Tensor) -> Tensor:
        log_probs = torch.empty_like(logits, dtype=torch.float32, memory_format=torch.contiguous_format)
        for out, part in row_parts(log_probs, logits):
            torch.log_softmax(part.to(torch.float32, copy=True).index_fill_(-1, excluded, -torch.inf), -1, out=out)
        ctx.save_for_backward(log_probs, excluded)
        ctx.dtype = logits.dtype
        return log_probs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_probs, excluded = ctx.saved_tensors
        to_logits = torch.empty_like(log_probs, dtype=ctx.dtype)
        for out, gradient, part in row_parts(to_logits, *gradients, log_probs):
            own = torch.ops.aten._log_softmax_backward_data(gradient, part, -1, torch.float32)
            out.copy_(own.index_fill_(-1, excluded, 0.0))
        return to_logits, None


def log_softmax_without(logits: Tensor, excluded: Tensor) -> Tensor:
    """(…, V) float32 log-probabilities: −∞ in the ``excluded`` columns, (E,) int64, which take no part.

    Values and gradients are those of ``logits.float().index_fill(-1, excluded, -inf).log_softmax(-1)``, bit for bit.
    """
    return _LogSoftmaxWithout.apply(logits, excluded)
