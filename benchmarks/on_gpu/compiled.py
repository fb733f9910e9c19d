"""Updates whose passes without a gradient are compiled, beside the same as they are: time, launches, compile time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.on_gpu.setting import Figures, Job
from benchmarks.on_gpu.updates import in_memory_trainer, kernels, profiled
from benchmarks.stopwatch import Stopwatch
from distill.training.trainer import Trainer
from teachers.compilation import Compilation

WAYS: dict[str, Compilation] = {"eager": False, "compiled": True, "compiled, CUDA graphs": "reduce-overhead"}
WARM = 3
"""Updates in which kernels are chosen, compiled and captured: one row is compiled when a pass first has one."""


def compiled(name: str, job: Job) -> Iterator[tuple[str, Figures]]:
    """A network's updates in each way, each from the same start."""
    for way, compilation in WAYS.items():
        if way in job.have:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            trainer = in_memory_trainer(job.setting.updates[name], Path(temporary), job, compile=compilation)
            yield way, measured(trainer, job)


def measured(trainer: Trainer, job: Job) -> Figures:
    """Medians of updates, after a few that compile."""
    watch, objective = Stopwatch(job.settle), trainer.objective
    watch.wrap(objective, "rollout", lambda: "rollout")
    start, losses = time.perf_counter(), []
    for _ in range(WARM + job.setting.timed):
        with watch.part("update"):
            losses.append(dict(trainer.update().steps)["student"].loss)
        watch.close()
    warm, timed = watch.updates[:WARM], watch.updates[WARM:]
    return {
        "ms an update": 1e3 * median(one["update"] for one in timed),
        "ms of the rollout": 1e3 * median(one["rollout"] for one in timed),
        "s of the first updates, compiling": sum(one["update"] for one in warm),
        "loss of the first update": losses[0],
        "launches": kernels(profiled(trainer, job), job)["launches"],
        "s in all": time.perf_counter() - start,
    }
