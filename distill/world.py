"""The processes of a run: one without a launcher, or as many as torchrun, deepspeed or accelerate started."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


def import_deepspeed() -> Any:
    """Import DeepSpeed quietly, on the accelerator that is there, without compiling what gloo does as well."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # every CPU start would compile it for a minute
    return deepspeed


def keep_memory() -> None:
    """Stop glibc from returning every large tensor to the system: page faults cost small CPU models half their time."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


@dataclass(frozen=True)
class World:
    """Who this process is among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """The global rows of a batch that this process holds."""
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in float64."""
        value = value.to(self.device, torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def start_world() -> World:
    """Join the process group, to be left at exit; without a launcher, a group of one that needs no port.

    A process joins once, whatever it trains: DeepSpeed keeps its groups for good.
    """
    keep_memory()
    # DeepSpeed calls what torch has renamed; nothing a person could do about it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    atexit.register(stop_world)
    deepspeed = import_deepspeed()
    if "RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = "0"
        if not dist.is_initialized():
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
    else:
        device = torch.device("cpu")
    return World(dist.get_rank(), dist.get_world_size(), device)


def stop_world() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
