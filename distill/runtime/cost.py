"""What something took: hours, passes of networks, tokens, memory; as ``cost.json`` of a run and results hold it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from distill.runtime.result_files import json_text, load_result
from teachers.files import publish

FILE = "cost.json"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was spent, all processes together; `+` adds what is spent one after the other.

    Passes are forward passes of one sequence each, counted where a network makes them: a batch's first pass, over
    canvases that are all the same, is one. Those of the watch are not counted, its seconds are.

    Attributes:
        seconds: by the clock.
        core_hours: these × processes × threads of each, where they computed on the CPU.
        gpu_hours: these × processes, where each had a GPU.
        devices: on which it ran, such as "2 × cpu, 1 thread each".
        teacher_passes, student_passes, critic_passes: of the teacher; of the student, or earlier ones of it; of any
            other network.
        tokens: of the rows that were trained on, or written.
        peak_host_bytes, peak_device_bytes: the most that a process had in memory, and on its GPU; None where unknown.
        seeds: of all runs.
        updates: that were made. lost_updates: those of them that a kill undid, so that they were made again.
        versions: by package.
    """

    seconds: float
    core_hours: float
    gpu_hours: float
    devices: tuple[str, ...]
    teacher_passes: int
    student_passes: int
    critic_passes: int
    tokens: int
    peak_host_bytes: int | None
    peak_device_bytes: int | None
    seeds: tuple[int, ...]
    updates: int
    lost_updates: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        """Of both: sums, of memory the larger; the later versions."""
        return Cost(
            seconds=self.seconds + other.seconds,
            core_hours=self.core_hours + other.core_hours,
            gpu_hours=self.gpu_hours + other.gpu_hours,
            devices=tuple(dict.fromkeys(self.devices + other.devices)),
            teacher_passes=self.teacher_passes + other.teacher_passes,
            student_passes=self.student_passes + other.student_passes,
            critic_passes=self.critic_passes + other.critic_passes,
            tokens=self.tokens + other.tokens,
            peak_host_bytes=larger(self.peak_host_bytes, other.peak_host_bytes),
            peak_device_bytes=larger(self.peak_device_bytes, other.peak_device_bytes),
            seeds=tuple(dict.fromkeys(self.seeds + other.seeds)),
            updates=self.updates + other.updates,
            lost_updates=self.lost_updates + other.lost_updates,
            versions={**self.versions, **other.versions},
        )

    def save(self, folder: Path) -> Path:
        """Write ``cost.json`` into a folder, whole or not at all; returns its path."""
        return publish(folder / FILE, json_text(self))

    @classmethod
    def load(cls, folder: Path) -> Cost | None:
        """What `save` wrote into a folder; None where there is nothing, as in runs of earlier versions.

        Raises:
            UserError: it is not whole.
        """
        path = folder / FILE
        return load_result(cls, path, "account of a run's cost; restore it") if path.is_file() else None

    @property
    def words(self) -> str:
        """In one line, for captions and cards."""
        passes = (("teacher", self.teacher_passes), ("student", self.student_passes), ("critic", self.critic_passes))
        lost = f", {self.lost_updates:,} of them lost" if self.lost_updates else ""
        parts = [
            f"{self.hours} on {' and '.join(self.devices)}",
            f"{self.updates:,} updates{lost}" if self.updates else "",
            *(f"{count:,} {name} passes" for name, count in passes if count),
            f"{self.tokens:,} tokens",
            self.memory,
            f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}" if self.seeds else "",
        ]
        return "; ".join(part for part in parts if part)

    @property
    def hours(self) -> str:
        """Of cores and of GPUs, in words."""
        spent = ((self.core_hours, "core"), (self.gpu_hours, "GPU"))
        return " and ".join(f"{hours:,.3g} {unit} hours" for hours, unit in spent if hours) or "0 hours"

    @property
    def memory(self) -> str:
        """The peaks of memory in words; empty where they are unknown."""
        peaks = ((self.peak_host_bytes, "a process"), (self.peak_device_bytes, "a GPU"))
        return ", ".join(f"{gigabytes(peak)} {where}" for peak, where in peaks if peak is not None)


def total(costs: list[Cost]) -> Cost | None:
    """Of all of them; None of none."""
    return reduce(Cost.__add__, costs) if costs else None


def larger(one: int | None, other: int | None) -> int | None:
    """The larger of those that are known."""
    return max((value for value in (one, other) if value is not None), default=None)


def gigabytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:,.2f} GB"
