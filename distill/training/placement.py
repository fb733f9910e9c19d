"""Where the frozen teacher lives: on every process, sharded over them, or spread over one process's devices."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from distill.config import TeacherConfig, TrainConfig
from distill.runtime.compilation import compile_network
from distill.runtime.deepspeed import join_deepspeed
from distill.runtime.world import World
from students.student import cast, use_flex_attention
from teachers.denoiser import Denoiser
from teachers.families.family import Partition, Spread


def spread_of(config: TeacherConfig, train: TrainConfig, world: World, run: Path | None) -> Spread | Partition | None:
    """Where the teacher goes as it is read; None where it is whole on every process.

    Args:
        run: the run's folder.
    """
    if config.placement == "dispatched":
        return Spread(config.max_memory, offload_folder(run))
    if config.placement == "sharded":
        join_deepspeed(world)
        return Partition(sharding(train))
    return None


def place_teacher(teacher: Denoiser, config: TeacherConfig, train: TrainConfig, world: World, folder: Path) -> Denoiser:
    """Put the teacher where ``teacher.placement`` says, in the precision it is used at, compiled if asked; in place.

    Nothing is done to one that is there already. Student and critic must have been copied from it before.

    Args:
        folder: where layers go that fit on no device ("dispatched"); made when needed.
    """
    if train.precision == "bfloat16":
        cast(teacher, torch.bfloat16)
    if train.flex_attention:
        use_flex_attention(teacher)
    if config.placement == "replicated":
        compile_network(teacher, train.compile)
        return teacher.to(world.device)
    if config.placement == "sharded" and not is_sharded(teacher):
        shard(teacher, train, world)
    if config.placement == "dispatched" and not is_dispatched(teacher):
        dispatch(teacher, config, folder)
    return teacher


def is_sharded(network: Denoiser) -> bool:
    """Whether DeepSpeed gathers its parameters for each pass; see `shard`."""
    return "engine" in vars(network)


def is_dispatched(network: Denoiser) -> bool:
    """Whether accelerate brings its layers to where they compute."""
    return any(hasattr(module, "_hf_hook") for module in network.modules())


def dispatch(network: Denoiser, config: TeacherConfig, folder: Path) -> None:
    """Spread the layers of a whole network over the devices of this process."""
    from accelerate import dispatch_model, infer_auto_device_map

    memory: dict[Any, Any] | None = dict(config.max_memory) if config.max_memory else None
    blocks = {type(block).__name__ for block in network.blocks()}
    devices = infer_auto_device_map(network, memory, no_split_module_classes=list(blocks))
    dispatch_model(network, devices, offload_dir=str(folder))


def offload_folder(run: Path | None = None) -> Path:
    """For what a dispatched teacher writes: beside a run's folder, or a temporary one; it goes with the process."""
    temporary = Path(tempfile.gettempdir()) / f"fewstep-offload-{os.getpid()}"
    folder = temporary if run is None else run.absolute().with_name(f".{run.name}.offload")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def sharding(train: TrainConfig) -> dict[str, Any]:
    """What DeepSpeed is told of a frozen network that is partitioned over the processes."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": train.precision == "bfloat16"},
    }


def shard(network: Denoiser, train: TrainConfig, world: World) -> None:
    """Partition a frozen network over the processes with ZeRO 3; each forward pass gathers what it needs.

    From here on a pass is collective: all processes must make it together.
    """
    engine = join_deepspeed(world).initialize(model=network, config=sharding(train))[0]
    object.__setattr__(network, "engine", engine)  # it lives as long as the network, and is no submodule of it
    network.collective = True
