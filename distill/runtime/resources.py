"""What the processes of a run hold and use: cores or GPUs, memory, versions of packages."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from distill.runtime.cost import Cost
from distill.runtime.world import World

PACKAGES = ("fewstep", "torch", "transformers")
"""Whose versions results are to be had with again."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def device_name(device: torch.device) -> str:
    """As results name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def devices_of(world: World) -> str:
    """How many of which, in words."""
    name = f"{world.size} × {device_name(world.device)}"
    if world.device.type == "cuda":
        return name
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''} each"


def versions() -> dict[str, str]:
    """Of Python and of `PACKAGES`, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def reset_peaks(device: torch.device) -> None:
    """Begin to look for peaks of memory anew. Where the system does not let a process do so, they are since its start.

    Nothing is kept: what is held already counts from the first moment on.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        CLEAR.write_text("5")  # VmHWM becomes VmRSS, see proc(5)
    except OSError:
        return


def peaks(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that this process had in memory at most, and on its GPU; None where nobody knows."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return _resident_peak(), on_device


def _resident_peak() -> int | None:
    try:
        lines = STATUS.read_text("ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def spent(
    world: World,
    seconds: float,
    passes: Iterable[int],
    tokens: int,
    seeds: tuple[int, ...],
    updates: int = 0,
    lost_updates: int = 0,
) -> Cost:
    """A cost, equal on every process; collective.

    Args:
        seconds: by the clock, of the main process.
        passes: of this process, through the teacher, the student, and any other network.
        tokens, updates, lost_updates: of all processes together.
    """
    # 1. one sum over the processes: passes, and for each process a place of its own for its peaks
    places = torch.zeros(world.size, 2, dtype=torch.float64)
    places[world.rank] = torch.tensor([peak or 0 for peak in peaks(world.device)], dtype=torch.float64)
    mine = torch.cat([torch.tensor([*passes, seconds if world.is_main else 0], dtype=torch.float64), places.flatten()])
    teacher, student, critic, seconds, *places = world.sum(mine).tolist()
    # 2. hours of what the processes held
    hours, on_gpu = seconds * world.size / 3600, world.device.type == "cuda"
    return Cost(
        seconds=seconds,
        core_hours=0.0 if on_gpu else hours * torch.get_num_threads(),
        gpu_hours=hours if on_gpu else 0.0,
        devices=(devices_of(world),),
        teacher_passes=int(teacher),
        student_passes=int(student),
        critic_passes=int(critic),
        tokens=tokens,
        peak_host_bytes=int(max(places[::2])) or None,
        peak_device_bytes=int(max(places[1::2])) or None,
        seeds=seeds,
        updates=updates,
        lost_updates=lost_updates,
        versions=versions(),
    )
