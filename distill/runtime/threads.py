"""How a command computes: threads, how they wait for each other, and CUDA's allocator; said before torch is imported.

All of it is said in environment variables, which OpenMP and CUDA's allocator read once, and what a person or a launcher
has said stays. A library must not do this to somebody else's program, so the package `fewstep` does not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

SMALL_PASS = 2e9
"""Multiplications and additions of a forward pass below which a second thread gains nothing [own, docs/log.md]."""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
CPUS, CGROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")


def settle_environment(environment: MutableMapping[str, str]) -> None:
    """Say what nobody has said: threads sleep while they wait, one a core, and CUDA's memory grows in place.

    A thread that waits busily, as OpenMP's do by default, takes the core that the thread it waits for needs, wherever
    another process is busy. Rows of several lengths and numbers, as rollouts have them, leave gaps in blocks of memory
    that can not grow.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (cores := available_cores()) is not None:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes_here(environment))))
    if not any(name in environment for name in ALLOCATOR):
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def processes_here(environment: MutableMapping[str, str]) -> int:
    """How many processes of the run are on this node, as torchrun and deepspeed say it; 1 where nobody does."""
    said = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or "1"
    return max(1, int(said)) if said.isdecimal() else 1


def available_cores() -> int | None:
    """Physical cores that this process may use, by its affinity and its container's quota; None where Linux is not."""
    if sys.platform != "linux":
        return None
    allowed = os.sched_getaffinity(0)
    # threads of one core have the same siblings
    cores = {_read(CPUS / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    return max(1, min(len(cores), int(_quota() or len(cores))))


def _quota() -> float | None:
    """Cores' worth of time that the container may use; None for all. Of control groups of version 2, and 1."""
    quota, _, period = (_read(CGROUP / "cpu.max") or "max").partition(" ")
    if quota == "max":
        quota, period = (_read(CGROUP / f"cpu/cpu.cfs_{name}_us") or "-1" for name in ("quota", "period"))
    return int(quota) / int(period) if int(quota) > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return None


def few_for_small(parameters: int, tokens: int) -> None:
    """Compute on one thread from here on if passes of so many tokens are too small for two.

    Args:
        parameters: of the network. tokens: that a pass reads, over all its rows.
    """
    import torch  # not before the environment is settled

    if 2 * parameters * tokens < SMALL_PASS:
        torch.set_num_threads(1)
