"""How long 8 steps of a sampler take, against as many bare forward passes of the same network, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.on_gpu.setting import Figures, Job
from students.fill import fill
from students.samplers import Dilated
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.randomness import RowStreams

STEPS = 8


def latency(job: Job) -> Iterator[tuple[str, Figures]]:
    """The first of the networks whose updates are measured, at each batch size."""
    name, size = next(iter(job.setting.updates.items()))
    denoiser = size.network(job.device, torch.bfloat16 if job.on_gpu else torch.float32)
    for batch in job.setting.batches:
        canvas = Canvas.blank(batch, size.length, denoiser.spec.mask_id, job.device)
        yield f"{name}, {batch} rows", at(denoiser, canvas, job)


@torch.no_grad()
def at(denoiser: Denoiser, canvas: Canvas, job: Job) -> Figures:
    """Medians over the repeats."""

    def sampler() -> None:
        fill(denoiser, canvas, Dilated(), STEPS, RowStreams(0, (1,), range(len(canvas)), canvas.device))

    def network() -> None:
        for _ in range(STEPS):
            denoiser.features(canvas)

    def with_head() -> None:
        """Every position, as samplers do that ask all of them."""
        chunks = chunk_count(canvas.tokens.numel(), denoiser.spec.vocabulary)
        for _ in range(STEPS):
            features = denoiser.features(canvas).flatten(0, 1)
            in_chunks(lambda part: (denoiser.head(part)[:, 0].clone(),), chunks, features)

    ways = {"sampler": sampler, "bare passes, head everywhere": with_head, "bare passes, no head": network}
    for way in ways.values():
        way()
    turns = [{name: clocked(way, job) for name, way in ways.items()} for _ in range(job.setting.repeats)]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in ways}
    ratios = [turn["sampler"] / turn["bare passes, head everywhere"] for turn in turns]
    return {
        **{f"{name}, ms": 1e3 * value for name, value in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio, lowest and highest": f"{min(ratios):.2f}–{max(ratios):.2f}",
        "ratio without head": seconds["sampler"] / seconds["bare passes, no head"],
    }


def clocked(way: Callable[[], object], job: Job) -> float:
    """Seconds until the device has done it."""
    job.settle()
    start = time.perf_counter()
    way()
    job.settle()
    return time.perf_counter() - start
