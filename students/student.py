"""The student: a trainable copy of the teacher, and its exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from teachers.denoiser import Denoiser


def frozen(denoiser: Denoiser) -> Denoiser:
    """The denoiser itself, without gradients and without dropout."""
    return denoiser.requires_grad_(False).eval()


def cast(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """Cast parameters in place, but no buffers: in bfloat16, rotary frequencies would misplace late positions."""
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.to(dtype)
    return denoiser


def trainable_copy(denoiser: Denoiser) -> Denoiser:
    """A copy to train. It stays in eval mode: a policy's sampling and gradient passes must be the same network."""
    return copy.deepcopy(denoiser).requires_grad_(True).eval()


def twin(denoiser: Denoiser) -> Denoiser:
    """A frozen float32 denoiser of the same kind, with parameters of the same names, to be filled with an average."""
    return frozen(copy.deepcopy(denoiser).float())


class Ema:
    """Exponential moving average of this process's shards of a network's float32 weights.

    It costs no communication and as much memory as the shards. The decay is warmed up as min(decay, (1+n)/(10+n)) so
    that short runs are not averaged with their start [own].

    Args:
        shards: the tensors that training moves in place.
    """

    def __init__(self, shards: list[Tensor], decay: float):
        self.shards, self.decay, self.updates = [s.detach() for s in shards], decay, 0
        self._averages = [s.clone() for s in self.shards]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current weights."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_(self._averages, self.shards, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within, the shards hold the average, and what is written to them becomes the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for shard, average in zip(self.shards, self._averages, strict=True):
            kept = shard.clone()
            shard.copy_(average)
            average.copy_(kept)
