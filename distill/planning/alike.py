"""Chunks that are all alike, of which a plan runs those at both ends: 8 billion parameters have hundreds of them.

Each chunk needs as much memory as the one before it, and what it gives back adds up or goes evenly. So the most is
there at one of the ends. It need not be the very first or last chunk: what all chunks read is freed within the last
backward pass, and the gradient of a weight is twice there from the second one on. Between the ends are tensors of the
shapes of results, and in the backward pass of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from teachers.chunks import all_chunks, chunk_loop
from teachers.host import split_of
from teachers.ops.parts import stands_for

Outputs = tuple[Tensor, ...]


@contextmanager
def planned(device: str) -> Iterator[None]:
    """Within it tensors without data stand for those of a ``device`` of this type, and of chunks the `ends` run."""
    where, loop = stands_for.set(device), chunk_loop.set(ends)
    try:
        yield
    finally:
        stands_for.reset(where)
        chunk_loop.reset(loop)


def ends(function: Callable[..., Outputs], sizes: Sequence[int], tensors: Sequence[Tensor | None]) -> list[Outputs]:
    """`teachers.chunks.all_chunks` of tensors without data: the first two, the last two, and the last of each size."""
    count, larger = len(sizes), sizes.count(sizes[0])
    apart = {0, 1, larger - 1, count - 2, count - 1}
    # 1. chunks that run, and those between as one
    runs = groupby(range(count), lambda chunk: chunk if chunk in apart else -1)
    spans = [(key >= 0, sum(sizes[chunk] for chunk in chunks)) for key, chunks in runs]
    if all(run for run, _ in spans):
        return all_chunks(function, sizes, tensors)
    split = [[None] * len(spans) if t is None else split_of(t, [size for _, size in spans]) for t in tensors]
    # 2. what they give
    outputs: list[Outputs] = []
    for (run, size), *part in zip(spans, *split, strict=True):
        outputs.append(function(*part) if run else _alike(outputs[0], size / sizes[0], part))
    return outputs


def _alike(made: Outputs, times: float, part: Sequence[Tensor | None]) -> Outputs:
    """Tensors such as those ``made``, with so many times their rows; they depend on ``part``."""
    return _Between.apply([(round(len(one) * times), one) for one in made], *part)


class _Between(torch.autograd.Function):
    """Tensors of given shapes; as gradients it has tensors of its inputs' shapes."""

    @staticmethod
    def forward(ctx: Any, made: Sequence[tuple[int, Tensor]], *part: Tensor | None) -> Outputs:
        ctx.inputs = [None if tensor is None else (tensor.shape, tensor.dtype) for tensor in part]
        outputs = tuple(one.new_empty(rows, *one.shape[1:]) for rows, one in made)
        constant = (new for new, (_, one) in zip(outputs, made, strict=True) if not one.requires_grad)
        ctx.mark_non_differentiable(*constant)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.inputs, ctx.needs_input_grad[1:], strict=True)
        return None, *(torch.empty(one[0], dtype=one[1]) if needed else None for one, needed in wanted)
