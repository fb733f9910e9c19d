"""Functions of log-probabilities, a chunk of positions at a time: with V = 150,000, (N, V) is what fills a memory.

What a loss or a draw needs of a position is a number or two; only `Denoiser.head` makes it V wide. So the head runs
inside the function that reduces its output again, chunk by chunk, and once more in the backward pass. `scatter` and
`row_sums` put what positions give back into rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from teachers.host import split_of
from teachers.positions import positions

LOGITS_AT_ONCE = 2**26
"""Log-probabilities of one chunk, 256 MB in float32 [own]; a loss needs a small multiple of it."""


def chunk_count(positions: int, vocabulary: int) -> int:
    """How many chunks keep ``positions`` of ``vocabulary`` entries within `LOGITS_AT_ONCE` each; at least 1.

    Where passes are collective (`Denoiser.collective`), ``positions`` must not depend on the data: give those of the
    whole canvas, masked or not, so that every process calls the head equally often.
    """
    return max(1, math.ceil(positions * vocabulary / LOGITS_AT_ONCE))


def in_chunks(function: Callable[..., tuple[Tensor, ...]], chunks: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Apply ``function`` to position-chunks of ``tensors`` and concatenate what it returns.

    The results and gradients are those of ``function(*tensors)`` up to the order of float sums; with one chunk it is
    that call. With more, nothing inside ``function`` is kept for the backward pass: it is computed again there.

    Args:
        function: of the parts, in the order of ``tensors``; acts on each position alone and draws nothing at random
            where gradients are wanted. Its outputs have positions as their first dimension, possibly only some of them.
        chunks: exactly how often ``function`` is called; parts are empty where there are fewer positions than that.
        tensors: (N, …) each; a None is passed on to every part.
    """
    if chunks == 1:
        return function(*tensors)
    positions = next(len(tensor) for tensor in tensors if tensor is not None)
    small, larger = divmod(positions, chunks)
    sizes = [small + (chunk < larger) for chunk in range(chunks)]
    again = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    outputs = chunk_loop.get()(again if torch.is_grad_enabled() else function, sizes, tensors)
    return tuple(torch.cat(output) for output in zip(*outputs, strict=True))


def all_chunks(
    function: Callable[..., tuple[Tensor, ...]], sizes: Sequence[int], tensors: Sequence[Tensor | None]
) -> list[tuple[Tensor, ...]]:
    """What ``function`` makes of each chunk, in order.

    Args:
        sizes: of the chunks, in positions. tensors: as of `in_chunks`.
    """
    split = [[None] * len(sizes) if tensor is None else split_of(tensor, sizes) for tensor in tensors]
    return [function(*part) for part in zip(*split, strict=True)]


chunk_loop = ContextVar("chunk_loop", default=all_chunks)
"""How `in_chunks` goes through them. A plan of memory, which computes nothing, leaves most of them out."""


def scatter(values: Tensor, where: Tensor) -> Tensor:
    """Put (N, …) values at the True positions of (B, L) ``where``, in order, and zeros elsewhere: (B, L, …)."""
    # not masked_scatter: in its backward pass the host waits
    each = values.shape[1:]
    return values.new_zeros(where.numel(), *each).index_copy(0, positions(where), values).view(*where.shape, *each)


def row_sums(values: Tensor, where: Tensor) -> Tensor:
    """Sum (N,) values, given as `scatter` takes them, over each row: (B,)."""
    return scatter(values, where).sum(1)
