"""V-wide tensors some rows at a time, so that what is computed on the way is never as large as they are.

On a CPU the rows are so few that all of it stays in a core's cache, which is faster as well: at V = 50,000 elementwise
operations wait for the memory, not for arithmetic. Elsewhere they are so many that launches cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

IN_CACHE = 2**17
"""Entries of the rows that a CPU is given at once, 512 KB in float32 [own]."""
AT_ONCE = 2**24
"""Those of other devices, 64 MB in float32 [own]."""
stands_for: ContextVar[str | None] = ContextVar("stands_for", default=None)
"""The type of the device that tensors without data are on, in a plan of memory; None where tensors have data."""


def entries_at_once(device: torch.device) -> int:
    """Entries of the rows that a device is given at once."""
    return IN_CACHE if (stands_for.get() or device.type) == "cpu" else AT_ONCE


def row_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of some rows each, as views: (n, V) of tensors (…, V), and (n,) of tensors (…); one empty part of no rows.

    Args:
        tensors: the first one is (…, V).
    """
    first = tensors[0]
    rows = max(1, entries_at_once(first.device) // max(1, first.shape[-1]))
    flat = (tensor.reshape(-1, *tensor.shape[first.dim() - 1 :]) for tensor in tensors)
    yield from zip(*(tensor.split(rows) for tensor in flat), strict=True)


@torch.no_grad()
def reduced(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What ``function`` makes of each row, (…) from tensors (…, V) and (…), the first of them V wide; no graph.

    Args:
        function: (n, V) or (n,) each → (n,), each row alone.
    """
    return torch.cat([function(*parts) for parts in row_parts(*tensors)]).view(tensors[0].shape[:-1])


@torch.no_grad()
def mapped(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The same where ``function`` makes a row of each row: (…, V), of the first tensor's type."""
    result = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    for out, *parts in row_parts(result, *tensors):
        out.copy_(function(*parts))
    return result
