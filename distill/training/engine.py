"""One engine per trained network: what the loop asks of it, whoever steps the weights.

`distill.training.plain` steps them with torch alone, `distill.training.zero` with DeepSpeed. Both keep the same state
by the same names, so that either continues what the other has saved.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.runtime.world import World
from students.student import cast, enable_gradient_checkpointing
from teachers.errors import UserError

STATE = ("weight", "exp_avg", "exp_avg_sq")
"""What training keeps of every parameter, in float32: its master copy and Adam's two moments."""


def learning_rate_factor(update: int, config: OptimizerConfig, updates: int) -> float:
    """Linear warm-up to 1, constant, then linear decay to ``final`` over the last ``decay`` of the run."""
    if update < config.warmup:
        return (update + 1) / config.warmup
    decay_updates = config.decay * updates
    left = updates - update
    if left >= decay_updates:
        return 1.0
    return config.final + (1 - config.final) * left / decay_updates


def check_flex_attention(train: TrainConfig, world: World) -> None:
    """Refuse flex attention where it can not train.

    Raises:
        UserError: this is a CPU.
    """
    if train.flex_attention and world.device.type == "cpu":
        raise UserError(
            "train.flex_attention is true, but this run is on a CPU, where flex attention has no gradient; leave it out"
        )


def micro_batch(train: TrainConfig, world: World, group: int = 1) -> int:
    """Rows a process sends through a network at once; the rows of an update must divide evenly.

    Args:
        group: rows that the objective looks at together, which no process and no micro-batch may part.

    Raises:
        UserError: they do not.
    """
    if train.batch % world.size:
        raise UserError(
            f"train.batch {train.batch} is not a multiple of the {world.size} processes; change train.batch or "
            "the number of processes"
        )
    share = train.batch // world.size
    micro = train.micro_batch or share
    if share % micro:
        raise UserError(
            f"train.batch {train.batch} over {world.size} processes is {share} rows each, not a multiple of "
            f"train.micro_batch {micro}; change either"
        )
    if micro % group:
        raise UserError(
            f"train.batch {train.batch} over {world.size} processes makes micro-batches of {micro} rows, not a "
            f"multiple of {group}, the rows this objective groups; change train.batch or the number of processes"
        )
    return micro


def layer_kind(name: str) -> Literal["attention", "mlp", "rest"]:
    """What kind of layer a parameter is of, by its name: in a block, what is neither attention nor a norm is "mlp"."""
    parts = name.split(".")
    in_block = any(part.isdecimal() for part in parts)
    if not in_block or any("norm" in part or re.fullmatch(r"ln_?\w*", part) for part in parts):
        return "rest"
    return "attention" if any("attn" in part or "attention" in part for part in parts) else "mlp"


def parameter_groups(trained: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[tuple[float, list[int]]]:
    """Which parameters learn at how many times the rate: (factor, indices into ``trained``), in order of appearance.

    Raises:
        UserError: a kind of layer has a rate of its own, and none of it trains.
    """
    rates: dict[str, float] = config.rates.model_dump()
    kinds = [layer_kind(name) for name, _ in trained]
    for kind, factor in rates.items():
        if factor != 1 and kind not in kinds:
            raise UserError(
                f"rates.{kind} is {factor:g}, but no layer of that kind trains; leave it out, or train all weights"
            )
    groups: dict[float, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(rates[kind], []).append(index)
    return list(groups.items())


def adam_settings(config: OptimizerConfig) -> dict[str, Any]:
    """What `torch.optim.AdamW` is built with."""
    return {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "fused": True}


class Engine(ABC):
    """A network, what steps its weights, and its state gathered and scattered by parameter name.

    An engine may spread the float32 state over the processes. `gather` and `scatter` hide that: all processes iterate
    together and each sees the full tensors, so that a checkpoint is of no engine, no stage and no world size.

    Attributes:
        network: the trained module.
        parameters: how many numbers are trained.
    """

    _adam: torch.optim.AdamW

    def __init__(self, network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig):
        """Cast the network as ``train.precision`` says, before it has to fit on a device in float32."""
        self.network, self.optimizer, self.updates = network, optimizer, train.updates
        if train.precision == "bfloat16":
            cast(network, torch.bfloat16)
        enable_gradient_checkpointing(network, train.gradient_checkpointing)
        self._trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._shapes = {name: p.shape for name, p in self._trained}  # ZeRO 3 empties the parameters themselves
        self._groups = parameter_groups(self._trained, optimizer)
        self.parameters = sum(p.numel() for _, p in self._trained)

    def _grouped(self, tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        """What stands for the trained parameters, in their order, as Adam's parameter groups."""
        return [{"params": [tensors[index] for index in indices]} for _, indices in self._groups]

    @abstractmethod
    def masters(self) -> list[Tensor]:
        """This process's shards of the float32 weights: what Adam steps, in place."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate a micro-batch's gradient; an update's is the mean over its micro-batches and the processes."""

    @abstractmethod
    def step(self, update: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """After the last micro-batch of an update: the weights move, unless loss or gradient are not finite.

        Args:
            update: counted from 0; sets the learning rate.
            loss: () of the whole update over all processes, the same on each.

        Returns:
            () the gradient's norm before clipping, and () bool whether the weights moved; on the loss's device, where
            reading them waits for all that was computed before.
        """

    @abstractmethod
    def _state(self, kind: str, name: str, parameter: nn.Parameter) -> Tensor:
        """``kind`` of state of a trained parameter, in full."""

    @abstractmethod
    def _set_state(self, kind: str, name: str, parameter: nn.Parameter, full: Tensor) -> None:
        """Put ``kind`` of state of a trained parameter back from a full tensor of the right shape."""

    @abstractmethod
    def _weights_from_masters(self) -> None:
        """Recompute the weights that forward passes use, as at the end of a step."""

    @abstractmethod
    def destroy(self) -> None:
        """Release what the engine holds beside the network."""

    def learning_rate(self, update: int) -> float:
        """The rate of an update's step, counted from 0, before `RatesConfig`."""
        return self.optimizer.lr * learning_rate_factor(update, self.optimizer, self.updates)

    @property
    def adam_steps(self) -> int:
        """Steps that Adam has taken; refused ones do not count."""
        return int(self._adam.state[self.masters()[0]]["step"])

    def gather(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter's ``kind`` of state (see `STATE`) in full; all processes iterate together."""
        for name, parameter in self._trained:
            yield name, self._state(kind, name, parameter)

    @torch.no_grad()
    def scatter(self, kind: str, value: Callable[[str], Tensor]) -> None:
        """Put ``kind`` of state back from full tensors, by name; the inverse of `gather`.

        Raises:
            UserError: a tensor has another shape than the parameter.
        """
        for name, parameter in self._trained:
            full = value(name)
            if full.shape != self._shapes[name]:
                raise UserError(
                    f"{kind} of {name} has shape {tuple(full.shape)}, the network's has {tuple(self._shapes[name])}; "
                    "resume with the config that the run was started with"
                )
            self._set_state(kind, name, parameter, full.to(parameter.device, torch.float32))

    @torch.no_grad()
    def load(self, state: Callable[[str, str], Tensor], adam_steps: int) -> None:
        """Continue from a checkpoint.

        Args:
            state: (kind, parameter name) → full tensor.
        """
        for kind in STATE:
            self.scatter(kind, lambda name, kind=kind: state(kind, name))
        for master in self.masters():
            self._adam.state[master]["step"].fill_(adam_steps)
        self._weights_from_masters()

    def _zero_moments(self) -> None:
        """Adam's state before its first step: there to be saved and loaded from the start."""
        for master in self.masters():
            self._adam.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    def _set_learning_rate(self, update: int) -> None:
        for group, (factor, _) in zip(self._adam.param_groups, self._groups, strict=True):
            group["lr"] = self.learning_rate(update) * factor
