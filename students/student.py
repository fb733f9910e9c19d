"""The student: a trainable copy of the teacher or an adapter on it, and its exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from students.adapters import AdaptedDenoiser, plain_copy
from students.planner import PlannedDenoiser
from teachers.checkpointing import Checkpointing, kept_products
from teachers.compilation import Compilation
from teachers.denoiser import Denoiser

Network = TypeVar("Network", bound=nn.Module)


def frozen(denoiser: Denoiser) -> Denoiser:
    """The denoiser itself, without gradients and without dropout."""
    return denoiser.requires_grad_(False).eval()


def cast(network: Network, dtype: torch.dtype) -> Network:
    """Cast parameters in place, but no buffers: in bfloat16, rotary frequencies would misplace late positions."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def trainable(denoiser: Denoiser) -> Denoiser:
    """The denoiser itself, to train. In eval mode: a policy's sampling and gradient passes must be the same network."""
    return denoiser.requires_grad_(True).eval()


def trainable_copy(denoiser: Denoiser) -> Denoiser:
    """A copy to train; see `trainable`."""
    return trainable(plain_copy(denoiser))


def twin(denoiser: Denoiser) -> Denoiser:
    """A frozen float32 denoiser of the same kind and with the same parameter names, to be filled with other values.

    A full network is copied; an adapted one gets a second adapter on the same base.
    """
    if isinstance(denoiser, PlannedDenoiser):
        return frozen(PlannedDenoiser(twin(denoiser.inner), copy.deepcopy(denoiser.planner).float()))
    if isinstance(denoiser, AdaptedDenoiser):
        return denoiser.twin()
    return frozen(copy.deepcopy(denoiser).float())


def enable_gradient_checkpointing(network: nn.Module, checkpointing: Checkpointing) -> None:
    """Let every denoiser in a network, full or adapted, keep few activations within its blocks, or none.

    Raises:
        UserError: there is one that can not do so.
    """
    contexts = kept_products if checkpointing == "products" else None
    for module in network.modules():
        if isinstance(module, Denoiser) and checkpointing:
            module.checkpoint_activations(contexts)


def compile_passes(network: nn.Module, compilation: Compilation) -> None:
    """Let every denoiser in a network make its passes without a gradient compiled, where that is asked for.

    Raises:
        UserError: there is one that can not do so.
    """
    for module in network.modules():
        if isinstance(module, Denoiser) and compilation:
            module.compile_passes(compilation)


def use_flex_attention(network: nn.Module) -> None:
    """Let every denoiser in a network compute attention in blocks and documents by flex attention.

    Raises:
        UserError: there is one that can not do so.
    """
    for module in network.modules():
        if isinstance(module, Denoiser):
            module.use_flex_attention()


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
