"""Where the frozen teacher lives: on every process, sharded over them, or spread over one process's devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.config import TeacherConfig, TrainConfig
from distill.runtime.deepspeed import join_deepspeed
from distill.runtime.world import World
from students.student import cast
from teachers.denoiser import Denoiser


def place_teacher(teacher: Denoiser, config: TeacherConfig, train: TrainConfig, world: World, folder: Path) -> Denoiser:
    """Put the teacher where ``teacher.placement`` says, in the precision it is used at; in place.

    Student and critic must have been copied from it before.

    Args:
        folder: where layers go that fit on no device ("dispatched"); made when needed.
    """
    if train.precision == "bfloat16":
        cast(teacher, torch.bfloat16)
    if config.placement == "replicated":
        return teacher.to(world.device)
    if config.placement == "sharded":
        shard(teacher, train, world)
        return teacher
    from accelerate import dispatch_model, infer_auto_device_map

    memory: dict[Any, Any] | None = dict(config.max_memory) if config.max_memory else None
    blocks = {type(block).__name__ for block in teacher.blocks()}
    devices = infer_auto_device_map(teacher, memory, no_split_module_classes=list(blocks))
    dispatch_model(teacher, devices, offload_dir=str(folder))
    return teacher


def shard(network: Denoiser, train: TrainConfig, world: World) -> None:
    """Partition a frozen network over the processes with ZeRO 3; each forward pass gathers what it needs.

    From here on a pass is collective: all processes must make it together.
    """
    deepspeed = join_deepspeed(world)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": train.precision == "bfloat16"},
    }
    engine = deepspeed.initialize(model=network, config=config)[0]
    object.__setattr__(network, "engine", engine)  # it lives as long as the network, and is no submodule of it
    network.collective = True
