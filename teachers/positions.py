"""Where a mask is True, found once: to find it, the host waits for a GPU, and much is read at one and the same mask.

Of what is known beforehand, such as the positions that a pass of a planned rule asks, it is told, or found in the copy
that the host has (teachers/host.py), and nobody waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from teachers import host

_FOUND = WeakTensorKeyDictionary()
"""Mask → its version when it was looked at, and its positions; for as long as the mask is there."""


def positions(mask: Tensor) -> Tensor:
    """(N,) int64, where a flattened bool mask is True, in order."""
    known = _FOUND.get(mask)
    if known is None or known[0] != mask._version:  # a mask may be changed in place
        copy = host.known(mask)
        found = (mask if copy is None else copy).flatten().nonzero().squeeze(1)
        tell(mask, found if copy is None else sent(found, mask.device))
    return _FOUND[mask][1]


def tell(mask: Tensor, found: Tensor) -> None:
    """Whoever made a mask knows its `positions`."""
    _FOUND[mask] = mask._version, found


def at(values: Tensor, mask: Tensor) -> Tensor:
    """``values[mask]`` of (…, *rest) values and a mask (…): (N, *rest); the host knows it where it knows both."""
    out = values.flatten(0, mask.dim() - 1).index_select(0, positions(mask))
    copy, where = host.known(values), host.known(mask)
    if copy is not None and where is not None:
        host.tell(out, copy[where])
    return out


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The same on a device; the host goes on while a GPU fetches it, but waits for what comes from one."""
    from_host = tensor.device.type == "cpu"
    pinned = from_host and torch.device(device).type == "cuda"
    there = (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=from_host)
    if from_host and there is not tensor:
        host.tell(there, tensor)
    return there


def on_device(numbers: Sequence[int], device: torch.device | str) -> Tensor:
    """(n,) int64 `sent` to a device."""
    return sent(torch.tensor(numbers, dtype=torch.int64), device)
