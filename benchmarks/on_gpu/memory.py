"""The peak of memory that updates had against what `fewstep plan` computes for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.on_gpu.setting import Figures, Job
from benchmarks.shapes import Size
from distill.planning.moments import moments, peak
from distill.planning.setup import setup_of
from distill.planning.shapes import Shapes


def memory(job: Job) -> Iterator[tuple[str, Figures]]:
    """Of each network whose updates were measured; it is computed, and can be done later."""
    for name, size in job.setting.updates.items():
        found = predicted(size, job.device.type)
        measured = job.earlier.get(f"updates, {name}", {}).get("whole updates", {}).get("GB allocated at most")
        yield name, {**found, "GB measured": measured, "predicted / measured": ratio(found["GB predicted"], measured)}


def predicted(size: Size, device: str) -> Figures:
    """The plan's peak within updates, on one device of this type, without a checkpoint."""
    with tempfile.TemporaryDirectory() as temporary:
        size.describe(Path(temporary))
        config = size.config(Path(temporary), updates=1)
        shapes, setup = Shapes(config, device), setup_of(config, 1)
        found = moments(shapes.networks(), shapes.passes(setup), setup)
    most = peak([moment for moment in found if moment.name not in ("checkpoint", "start")])
    return {"GB predicted": most.total() / 1e9, "moment": most.name}


def ratio(told: float, was: float | None) -> float | None:
    """None where nothing was measured."""
    return None if was is None else told / was
