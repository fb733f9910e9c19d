"""The student: a trainable copy of the teacher, and its exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from teachers.denoiser import Denoiser


def frozen(denoiser: Denoiser) -> Denoiser:
    """The denoiser itself, without gradients and without dropout."""
    return denoiser.requires_grad_(False).eval()


def non_persistent_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that a checkpoint leaves out, by name: computed constants such as rotary frequencies."""
    return {
        f"{path}.{name}": module._buffers[name]  # type: ignore[misc]
        for path, module in network.named_modules()
        for name in module._non_persistent_buffers_set
        if module._buffers[name] is not None
    }


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network in place, but not its computed constants: bfloat16 rotary frequencies misplace late positions."""
    constants = {name: buffer.clone() for name, buffer in non_persistent_buffers(network).items()}
    network.to(dtype)
    restore(network, constants)
    return network


def restore(network: nn.Module, constants: dict[str, Tensor]) -> None:
    """Put computed constants back at the precision they were computed in."""
    for name, value in constants.items():
        path, _, last = name.rpartition(".")
        module = network.get_submodule(path)
        module._buffers[last] = value.to(module._buffers[last].device)  # type: ignore[union-attr]


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
