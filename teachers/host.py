"""What the host knows of tensors on a device, so that it need not wait for a GPU to ask.

It knows what it has sent there, what it has `learned`, of as many tensors as it likes in one wait, and what is
`derived` from such tensors alone. Copies are kept in host memory for as long as the tensor is there and unchanged. They
are for masks, tokens and numbers of rows, which have a few bytes a position, beside a network's thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()
"""Tensor → its version and its copy's when they were the same, and the copy."""


def tell(tensor: Tensor, copy: Tensor) -> None:
    """Whoever made a tensor has its values in host memory as well."""
    _COPIES[tensor] = tensor._version, copy._version, copy


def known(tensor: Tensor) -> Tensor | None:
    """The tensor in host memory; None where the host would have to wait for it."""
    if tensor not in _COPIES:
        return None
    mine, its, copy = _COPIES[tensor]
    return copy if (mine, its) == (tensor._version, copy._version) else None


def learned(*tensors: Tensor) -> list[Tensor]:
    """The tensors in host memory, which waits at most once for the device; of booleans and whole numbers."""
    unknown = [tensor for tensor in tensors if known(tensor) is None]
    if unknown:
        # 1. one row of bytes, the wider numbers first: a view of whole numbers begins at a multiple of their size
        unknown.sort(key=lambda tensor: -tensor.element_size())
        together = torch.cat([tensor.flatten().view(torch.uint8) for tensor in unknown]).cpu()
        # 2. each one's part of it
        parts = together.split([tensor.numel() * tensor.element_size() for tensor in unknown])
        for tensor, part in zip(unknown, parts, strict=True):
            tell(tensor, part.view(tensor.dtype).view(tensor.shape))
    copies = [known(tensor) for tensor in tensors]
    return [copy for copy in copies if copy is not None]


def derived(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, which draws nothing; the host knows it where it knows all of these."""
    out, copies = function(*tensors), []
    for tensor in tensors:
        copy = known(tensor)
        if copy is None:
            return out
        copies.append(copy)
    tell(out, function(*copies))
    return out


def part_of(tensor: Tensor, part: Tensor | slice) -> Tensor:
    """``tensor[part]``, by index, mask or slice; `derived`."""
    if isinstance(part, Tensor):
        return derived(lambda whole, rows: whole[rows], tensor, part)
    return derived(lambda whole: whole[part], tensor)


def split_of(tensor: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """``tensor.split(sizes)``, with one gradient for all parts; the host knows these where it knows the whole."""
    parts, copy = tensor.split(list(sizes)), known(tensor)
    if copy is not None:
        for part, its in zip(parts, copy.split(list(sizes)), strict=True):
            tell(part, its)
    return parts


def columns_of(tensor: Tensor) -> Sequence[Tensor]:
    """(B, M, …) → M times (B, …), `derived`."""
    return [derived(lambda whole, n=n: whole[:, n], tensor) for n in range(tensor.shape[1])]


def alike(rows: Tensor) -> bool:
    """Whether all rows of (B, …) are the same; the host waits where it does not know them."""
    copy = known(rows)
    values = rows if copy is None else copy
    return bool((values == values[:1]).all())
