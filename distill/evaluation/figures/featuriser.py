"""What a language model makes of texts: its states, and the gradients of their likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.judge import Judge
from distill.evaluation.texts import Texts
from distill.runtime.world import ALONE, World

BLOCK = 16
"""Texts whose gradient is taken at once, at most [own]."""


class States(NamedTuple):
    """Of N texts: (N, D) the state of the last token that is measured, and the mean state of all that are."""

    last: np.ndarray
    mean: np.ndarray


class Gradients(NamedTuple):
    """Of N texts: the mean gradient of their negative log-likelihood a token, and its square without bias."""

    mean: list[Tensor]
    square: float


def states(judge: Judge, texts: Texts, batch: int, world: World = ALONE) -> States:
    """The last layer's states of texts, ``batch`` at a time, which the processes of ``world`` share."""

    def work(rows: range) -> tuple[np.ndarray, np.ndarray]:
        part = texts.rows(slice(rows.start, rows.stop))
        return _states(judge, *judge.read(part.tokens, part.written))

    parts = world.share(len(texts.tokens), batch, work)
    last, mean = zip(*parts, strict=True)
    return States(np.concatenate(last), np.concatenate(mean))


@torch.no_grad()
def _states(judge: Judge, tokens: Tensor, real: Tensor | None, written: Tensor) -> tuple[np.ndarray, np.ndarray]:
    # 1. (B, L, D), without the head
    attention = None if real is None else real.to(judge.model.device).long()
    out = judge.model.base_model(tokens.to(judge.model.device), attention_mask=attention, use_cache=False)
    hidden, measured = out.last_hidden_state.float().cpu(), written.float()
    # 2. of each text
    place = (measured * torch.arange(1, tokens.shape[1] + 1)).argmax(1)
    mean = (hidden * measured[..., None]).sum(1) / measured.sum(1, keepdim=True).clamp(min=1)
    return hidden[torch.arange(len(hidden)), place].numpy(), mean.numpy()


def gradients(judge: Judge, texts: Texts) -> Gradients:
    """The gradient of a judge's −log p(text), nats a token, with respect to its weights: its mean over texts.

    The square of the mean, ‖E g‖², is estimated by a U-statistic of the gradients g of blocks of texts, and so without
    the part that is the blocks' own noise.
    """
    parameters = list(judge.model.parameters())
    total, squares, count = [torch.zeros_like(p) for p in parameters], 0.0, 0
    for block in _blocks(texts):
        own = _gradient(judge, block, parameters)
        squares += dot(own, own)
        total = [sum_ + part for sum_, part in zip(total, own, strict=True)]
        count += 1
    return Gradients([part / count for part in total], (dot(total, total) - squares) / (count * (count - 1)))


def gradient_moment(texts: Gradients, real: Gradients) -> float:
    """‖E g − E g_real‖² (Hoogeboom et al. 2603.20155, section 5), without bias: it may come out a little below 0."""
    return texts.square + real.square - 2 * dot(texts.mean, real.mean)


def dot(left: list[Tensor], right: list[Tensor]) -> float:
    """⟨left, right⟩ of two gradients."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))


def _blocks(texts: Texts) -> Iterator[Texts]:
    """Blocks of texts, of equal size but for one text, at least 2 and at most `BLOCK` in each."""
    count = max(2, -(-len(texts.tokens) // BLOCK))
    for rows in np.array_split(np.arange(len(texts.tokens)), count):
        yield texts.rows(slice(int(rows[0]), int(rows[-1]) + 1))


@torch.enable_grad()
def _gradient(judge: Judge, texts: Texts, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    tokens, real, written = judge.read(texts.tokens, texts.written)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        counts = written[:, 1:].to(judge.model.device)
        loss = (judge.token_nats(tokens, real) * counts).sum() / counts.sum()
        own = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, own, strict=True)]
