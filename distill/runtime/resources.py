"""What the processes of a run hold and use: cores or GPUs, memory, versions of packages."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from distill.runtime.cost import Cost, larger
from distill.runtime.world import World
from teachers.compilation import clock
from teachers.denoiser import Denoiser

Result = TypeVar("Result")

PACKAGES = ("fewstep", "torch", "transformers")
"""Whose versions results are to be had with again."""
Peaks = tuple[int | None, int | None]
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


class PeakMemory:
    """The most that this process had in memory, and on its GPU, since it was last asked to look anew, or at all.

    Bytes; None where nobody knows. Where the system does not let a process look anew, all peaks are since its start.
    """

    def __init__(self) -> None:
        self._before: Peaks = None, None

    def reset(self, device: torch.device) -> None:
        """Look anew. What is held already counts."""
        self._before = self.whole(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            CLEAR.write_text("5")  # VmHWM becomes VmRSS, see proc(5)
        except OSError:
            return

    def since_reset(self, device: torch.device) -> Peaks:
        """In memory, and on the GPU."""
        on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return _resident_peak(), on_device

    def whole(self, device: torch.device) -> Peaks:
        """The same since the process began."""
        (host, on_device), (host_before, device_before) = self.since_reset(device), self._before
        return larger(host, host_before), larger(on_device, device_before)


MEMORY = PeakMemory()
"""This process's."""


@dataclass(frozen=True)
class Use:
    """What some work took.

    Attributes:
        seconds: by the clock, until the slowest process was done, without those in which a process compiled.
        passes: sequences that a network was sent, by all processes together.
        peak_host_bytes, peak_device_bytes: of the process that had the most, while it worked.
    """

    seconds: float
    passes: int
    peak_host_bytes: int | None
    peak_device_bytes: int | None


def measured(world: World, network: Denoiser, work: Callable[[], Result]) -> tuple[Result, Use]:
    """What some work gives, and what it took of a network; collective."""
    world.barrier()
    MEMORY.reset(network.device)
    before, start = network.tally.passes, clock()
    result = work()
    here = clock() - start, network.tally.passes - before, *MEMORY.since_reset(network.device)
    seconds, passes, hosts, devices = zip(*world.gather(here), strict=True)
    # all begin and end together, so the others waited for the one that compiled longest
    return result, Use(min(seconds), sum(passes), reduce(larger, hosts), reduce(larger, devices))


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
    places[world.rank] = torch.tensor([peak or 0 for peak in MEMORY.whole(world.device)], dtype=torch.float64)
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
