"""DeepSpeed's import and its process group: only what trains with it pays for it."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist

from distill.runtime.world import World, group_backend
from teachers.environment import environment


def import_deepspeed() -> Any:
    """Import DeepSpeed quietly, on the accelerator that is there, without compiling what gloo does as well."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # left to find out, it says so on standard output
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        # Muon's functions are compiled as they are imported, which imports torch's compiler: two seconds of a core in
        # every process, and nothing here trains with Muon
        with environment("TORCHDYNAMO_DISABLE", "1"):
            import deepspeed.runtime.zero.muon.original_muon

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # every CPU start would compile it for a minute
    return deepspeed


def join_deepspeed(world: World) -> Any:
    """Import DeepSpeed and give it the process group of ``world``; a process alone gets one that needs no port.

    DeepSpeed keeps its groups for good, so a process joins once, whatever it trains.
    """
    deepspeed = import_deepspeed()
    # it calls what torch has renamed; nothing a person could do about it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; `start_world` has checked what there is
    if not dist.is_initialized():
        assert world.size == 1, "start_world joins several"
        dist.init_process_group(group_backend(), store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
