"""Which engine trains: torch alone where it can, DeepSpeed where it must or is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.config.deepspeed import unusable
from distill.config.schema import RatesConfig
from distill.runtime.world import World
from distill.training.engine import STATE, Engine, micro_batch
from distill.training.plain import PlainEngine
from distill.training.zero import ZeroEngine
from teachers.errors import UserError


def start_engine(
    network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig, deepspeed: dict[str, Any] | None, world: World
) -> Engine:
    """An engine for ``network``.

    Args:
        deepspeed: see `distill.config.deepspeed.deepspeed_section`.
    """
    if deepspeed is None:
        return PlainEngine(network, optimizer, train, world)
    return ZeroEngine(network, optimizer, train, deepspeed, world)


class Probe(nn.Module):
    """A network of four weights, made without drawing a number."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) → ()."""
        return (x.to(self.weights) @ self.weights).float().sum()


def rehearse(section: dict[str, Any], train: TrainConfig, world: World) -> None:
    """Take one step of a tiny network under a ``deepspeed`` section, on all processes, before anything is loaded.

    DeepSpeed accepts many settings that it only fails on when it trains, some on a number of processes alone.

    Raises:
        UserError: it cannot train so.
    """
    if not section:
        return
    try:
        _take_a_step(section, train, world)
    except UserError:
        raise
    except Exception as error:  # of any type: what it raises is about the section, there is nothing else here
        raise UserError(unusable(section, error)) from error


def _take_a_step(section: dict[str, Any], train: TrainConfig, world: World) -> None:
    network = Probe()
    precision = "float32" if train.precision == "auto" else train.precision
    tried = train.model_copy(update={"gradient_checkpointing": False, "precision": precision})
    alike = train.student.model_copy(update={"rates": RatesConfig()})  # it has layers of no kind
    engine = ZeroEngine(network, alike, tried, section, world)
    rows = torch.ones(micro_batch(train, world), 2, device=world.device)
    for _ in range(train.batch // world.size // len(rows)):
        engine.backward(network(rows))
    engine.step(0, torch.zeros((), device=world.device))
    for kind in STATE:
        state = {name: full.clone() for name, full in engine.gather(kind)}
        engine.scatter(kind, state.__getitem__)
    engine.destroy()
