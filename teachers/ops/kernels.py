"""Triton's kernels of what is fused with a head. Triton is imported with this file, so it is imported where one runs.

A program computes the logits of a tile, `ROWS` positions by `TILE` columns, keeps them in registers and writes what is
made of them. Products are of the features' type, sums float32. Triton compiles these functions from their text, for
each value of the arguments in capitals.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from teachers.ops.head import TILE, LinearHead

triton: Any = import_module("triton")
tl: Any = import_module("triton.language")
constexpr = int  # Triton knows it by this name
ROWS, WIDTH = 64, 32
"""Positions of a tile, and features that are multiplied at once [own]."""


@triton.jit
def _tile(features, weight, offset, rows, columns, n, v, h, ROWS: constexpr, TILE: constexpr, WIDTH: constexpr):
    """(ROWS, TILE) logits; −∞ past the last column."""
    total = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, h, WIDTH):
        inner = start + tl.arange(0, WIDTH)
        x_at = rows[:, None].to(tl.int64) * h + inner[None, :]
        x = tl.load(features + x_at, mask=(rows[:, None] < n) & (inner[None, :] < h), other=0.0)
        w_at = columns[:, None].to(tl.int64) * h + inner[None, :]
        w = tl.load(weight + w_at, mask=(columns[:, None] < v) & (inner[None, :] < h), other=0.0)
        total = tl.dot(x, tl.trans(w.to(x.dtype)), total, input_precision="ieee")
    return total + tl.load(offset + columns, mask=columns < v, other=-float("inf"))[None, :]


@triton.jit
def _masses(
    features, weight, offset, top_out, tempered_out, own_out, temperature, n, v, h, tiles,
    ROWS: constexpr, TILE: constexpr, WIDTH: constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    logits = _tile(features, weight, offset, rows, columns, n, v, h, ROWS, TILE, WIDTH)
    top = tl.maximum(tl.max(logits, 1), -3.4028234e38)
    above = logits - top[:, None]
    at = rows.to(tl.int64) * tiles + tl.program_id(1)
    tl.store(top_out + at, top, mask=rows < n)
    tl.store(tempered_out + at, tl.sum(tl.exp(above / temperature), 1), mask=rows < n)
    tl.store(own_out + at, tl.sum(tl.exp(above), 1), mask=rows < n)


def masses(head: LinearHead, features: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each tile's largest logit, and logs of its sums of exponentials at the temperature and at 1: (N, tiles) each."""
    (n, h), v = features.shape, len(head.weight)
    tiles = triton.cdiv(v, TILE)
    top, tempered, own = (features.new_empty(n, tiles, dtype=torch.float32) for _ in range(3))
    _masses[triton.cdiv(n, ROWS), tiles](
        features.contiguous(), head.weight.contiguous(), head.offset, top, tempered, own,
        temperature, n, v, h, tiles, ROWS, TILE, WIDTH,
    )  # fmt: skip
    return top, top / temperature + tempered.log(), top + own.log()


@triton.jit
def _tokens(
    features, weight, offset, chunks, within, token_out, logit_out, temperature, v, h,
    GREEDY: constexpr, TILE: constexpr, WIDTH: constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, TILE)
    columns = tl.load(chunks + row) * TILE + number
    # 1. the logits of one row in its tile
    logits = tl.load(offset + columns, mask=columns < v, other=-float("inf"))
    for start in range(0, h, WIDTH):
        inner = start + tl.arange(0, WIDTH)
        x = tl.load(features + row * h + inner, mask=inner < h, other=0.0)
        w_at = columns[:, None] * h + inner[None, :]
        w = tl.load(weight + w_at, mask=(columns[:, None] < v) & (inner[None, :] < h), other=0.0)
        logits += tl.sum(w.to(x.dtype).to(tl.float32) * x.to(tl.float32)[None, :], 1)
    # 2. the first of its tokens whose cumulative probability is past the uniform
    if GREEDY:
        column = tl.argmax(logits, 0)
    else:
        p = tl.exp((logits.to(tl.float64) - tl.max(logits, 0)) / temperature)
        cumulative = tl.cumsum(p, 0)
        past = (cumulative > tl.load(within + row) * tl.max(cumulative, 0)) & (p > 0)
        column = tl.minimum(tl.min(tl.where(past, number, TILE), 0), tl.max(tl.where(p > 0, number, 0), 0))
    tl.store(token_out + row, tl.load(chunks + row) * TILE + column)
    tl.store(logit_out + row, tl.sum(tl.where(number == column, logits, 0.0), 0))


def tokens(
    head: LinearHead, features: Tensor, chunks: Tensor, within: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """(N,) int64 tokens in each row's tile, and their logits.

    Args:
        chunks: (N,) int64 tiles. within: (N,) float64 uniforms; None for the most probable tokens.
    """
    token, logit = torch.empty_like(chunks), features.new_empty(len(chunks), dtype=torch.float32)
    greedy = within is None
    _tokens[(len(chunks),)](
        features.contiguous(), head.weight.contiguous(), head.offset, chunks, chunks if greedy else within,
        token, logit, temperature, len(head.weight), features.shape[1], greedy, TILE, WIDTH,
    )  # fmt: skip
    return token, logit
