"""torch's own optimiser, for one process that holds everything: no shards, no process group, no DeepSpeed.

Gradient mean, norm and clipping are DeepSpeed's formulas in its order, so that a run on one process is the same, bit
for bit, whichever of the two engines trains it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.runtime.world import World
from distill.training.engine import Engine, adam_settings, micro_batch


class SkippingAdamW(torch.optim.AdamW):
    """Torch's, whose fused step does nothing where ``found_inf`` is 1: () float32, read where the weights are."""

    found_inf: Tensor | None = None


class PlainEngine(Engine):
    """Weights in the training precision, float32 masters of them, and AdamW; in float32 the masters are the weights."""

    _adam: SkippingAdamW

    def __init__(self, network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig, world: World):
        super().__init__(network, optimizer, train)
        network.to(world.device)
        self._accumulation = train.batch // micro_batch(train, world)
        self._masters = [parameter.detach().float() for _, parameter in self._trained]
        self._master = dict(zip(self._shapes, self._masters, strict=True))
        self._adam = SkippingAdamW(self._grouped(self._masters), **adam_settings(optimizer))
        self._zero_moments()

    def masters(self) -> list[Tensor]:
        """See `Engine.masters`."""
        return self._masters

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        (loss / self._accumulation).backward()

    @torch.no_grad()
    def step(self, update: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """See `Engine.step`; the host does not learn whether the weights move."""
        self._set_learning_rate(update)
        gradients = self._take_gradients()
        norm = gradient_norm(gradients)
        moves = loss.isfinite() & norm.isfinite()
        clip(gradients, norm, self.optimizer.clip)
        for master, gradient in zip(self._masters, gradients, strict=True):
            master.grad = gradient
        self._adam.found_inf = (~moves).float()
        self._adam.step()
        self._adam.zero_grad()
        self._weights_from_masters()
        return norm, moves

    def _take_gradients(self) -> list[Tensor]:
        """Every parameter's gradient in float32, zero where none came, and no longer the parameter's."""
        gradients = []
        for _, parameter in self._trained:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(gradient.float())
            parameter.grad = None
        return gradients

    def _state(self, kind: str, name: str, parameter: nn.Parameter) -> Tensor:
        master = self._master[name]
        return master if kind == "weight" else self._adam.state[master][kind]

    def _set_state(self, kind: str, name: str, parameter: nn.Parameter, full: Tensor) -> None:
        self._state(kind, name, parameter).copy_(full)

    @torch.no_grad()
    def _weights_from_masters(self) -> None:
        pairs = zip((parameter for _, parameter in self._trained), self._masters, strict=True)
        rounded = [(parameter, master) for parameter, master in pairs if parameter.dtype != master.dtype]
        if rounded:
            torch._foreach_copy_([parameter for parameter, _ in rounded], [master for _, master in rounded])

    def destroy(self) -> None:
        """See `Engine.destroy`."""
        self._adam.state.clear()


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """() float32, the length of all gradients as one vector: squares are summed in float64, as DeepSpeed does."""
    norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float64))
    return norms.pow(2).sum().float().pow(0.5)


def clip(gradients: list[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients of length ``norm`` to ``largest`` at most, in place; 0 leaves them as they are."""
    if largest > 0:
        excess = ((norm + 1e-6) / largest).clamp(min=1.0)
        torch._foreach_mul_(gradients, 1.0 / excess)
