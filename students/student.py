"""The student: a trainable copy of the teacher, and its exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterable

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


class Ema:
    """Exponential moving average of a network's float32 parameters.

    The decay is warmed up as min(decay, (1+n)/(10+n)) so that short runs are not averaged with their start [own].

    Attributes:
        denoiser: the averaged network, always float32; what is evaluated and exported.
    """

    def __init__(self, denoiser: Denoiser, decay: float):
        self.denoiser = frozen(copy.deepcopy(denoiser).float())
        self.decay = decay
        self.updates = 0
        self._averages = dict(self.denoiser.named_parameters())

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Move towards the current parameters, given by name."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        for name, value in parameters:
            self._averages[name].lerp_(value.to(self._averages[name]), 1 - decay)
