"""Which engine trains: torch alone where it can, DeepSpeed where it must or is asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from distill.config import OptimizerConfig, TrainConfig
from distill.runtime.world import World
from distill.training.engine import Engine
from distill.training.plain import PlainEngine
from distill.training.zero import ZeroEngine


def deepspeed_section(section: dict[str, Any], world: World, sharded_teacher: bool = False) -> dict[str, Any] | None:
    """What DeepSpeed is told, or None where torch alone trains.

    That is on one process, unless the config has a ``deepspeed`` section or the teacher lies in DeepSpeed's shards.
    """
    return section if section or sharded_teacher or world.size > 1 else None


def start_engine(
    network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig, deepspeed: dict[str, Any] | None, world: World
) -> Engine:
    """An engine for ``network``.

    Args:
        deepspeed: see `deepspeed_section`.
    """
    if deepspeed is None:
        return PlainEngine(network, optimizer, train, world)
    return ZeroEngine(network, optimizer, train, deepspeed, world)
