"""Head, log-softmax and draw in one, over chunks of the vocabulary: nothing is (N, V).

A draw inverts the cumulative distribution in two steps: first among the chunks, by their masses, then within the chosen
chunk, whose logits are computed a second time. Exponentials and their sums within a chunk are float32, which errs by
parts of a token's own probability, however small that is; what is compared with a uniform is float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from teachers.ops.head import LinearHead, runs_triton


class HeadDraw(NamedTuple):
    """A token at each of N positions.

    Attributes:
        tokens: (N,) int64.
        log_prob: (N,) float32 log-probabilities under the law at the temperature.
        confidence: (N,) float32, under the head's own law.
    """

    tokens: Tensor
    log_prob: Tensor
    confidence: Tensor


class Masses(NamedTuple):
    """What is known of N laws after one look at all logits, chunk by chunk, (N, C) each.

    Attributes:
        top: the largest logit, at least float32's least number.
        tempered: the log of the chunk's sum of exponentials, of logits over the temperature.
        own: the same at temperature 1.
    """

    top: Tensor
    tempered: Tensor
    own: Tensor


@torch.no_grad()
def head_and_draw(head: LinearHead, features: Tensor, uniforms: Tensor | None, temperature: float = 1.0) -> HeadDraw:
    """Draw from the law of a head, softmax of its logits over ``temperature``.

    The law is `teachers.randomness.categorical`'s of these log-probabilities, and so is nearly every token for the same
    uniforms: one that falls within float32's rounding of the border between two tokens may take the other.

    Args:
        features: (N, H). uniforms: (N,) float64 in [0, 1); None for the most probable tokens.
    """
    masses = (
        _kernel_masses(head, features, temperature) if runs_triton(features) else _masses(head, features, temperature)
    )
    # 1. which chunk, and where in it
    chunk, within = masses.top.argmax(-1), None
    if uniforms is not None:
        chunk, within = inverse(masses.tempered, uniforms)
    # 2. which of its tokens
    settle = _kernel_tokens if runs_triton(features) else _tokens
    tokens, logits = settle(head, features, chunk, within, temperature)
    return HeadDraw(tokens, logits / temperature - masses.tempered.logsumexp(-1), logits - masses.own.logsumexp(-1))


def hit(cumulative: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Where in each row of cumulative sums (N, V) a uniform (N,) falls: the entry, and the sum there, (N, 1)."""
    target = uniforms[:, None] * cumulative[:, -1:]
    # right=True: what has no width can not be hit, even by u = 0
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[-1] - 1), target


def inverse(log_masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The entry of each row in whose part of the distribution a uniform falls, (N,), and where in this part, (N,).

    Args:
        log_masses: (N, C), normalised or not; −∞ means never. uniforms: (N,) float64 in [0, 1).
    """
    p = log_masses.double().softmax(-1)
    cumulative = p.cumsum(-1)
    entry, target = hit(cumulative, uniforms)
    width = p.gather(-1, entry)
    within = (target - cumulative.gather(-1, entry) + width) / width
    return entry[:, 0], within[:, 0].clamp_(0, math.nextafter(1, 0))


# --- in torch ---------------------------------------------------------------------------------------------------------


def _masses(head: LinearHead, features: Tensor, temperature: float) -> Masses:
    chunks = [_mass(head.logits(features, columns), temperature) for columns in head.chunks(len(features))]
    return Masses(*(torch.stack(parts, -1) for parts in zip(*chunks, strict=True)))


def _mass(logits: Tensor, temperature: float) -> Masses:
    """(N,) each of one chunk's logits, which are used up."""
    top = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    logits.sub_(top)
    own = (top[:, 0] + logits.exp().sum(-1).log()) if temperature != 1 else None
    tempered = top[:, 0] / temperature + logits.div_(temperature).exp_().sum(-1).log_()
    return Masses(top[:, 0], tempered, tempered if own is None else own)


def _tokens(
    head: LinearHead, features: Tensor, chunk: Tensor, within: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """(N,) tokens, and their logits."""
    tokens, chosen = torch.empty_like(chunk), features.new_empty(len(chunk), dtype=torch.float32)
    for number, columns in enumerate(head.chunks(len(features))):
        rows = (chunk == number).nonzero()[:, 0]
        if len(rows):
            logits = head.logits(features[rows], columns)
            column = logits.argmax(-1) if within is None else inverse(logits / temperature, within[rows])[0]
            tokens[rows], chosen[rows] = column + columns.start, logits.gather(-1, column[:, None])[:, 0]
    return tokens, chosen


# --- in Triton --------------------------------------------------------------------------------------------------------


def _kernel_masses(head: LinearHead, features: Tensor, temperature: float) -> Masses:
    from teachers.ops import kernels

    return Masses(*kernels.masses(head, features, temperature))


def _kernel_tokens(
    head: LinearHead, features: Tensor, chunk: Tensor, within: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    from teachers.ops import kernels

    return kernels.tokens(head, features, chunk, within, temperature)
