"""How well updates use the device: MFU, where each second goes, memory, and a profile."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.flops import FlopMeter
from benchmarks.on_gpu.setting import Figures, Job
from benchmarks.shapes import Size
from benchmarks.stopwatch import Stopwatch
from distill.data.tokenizers import load_tokenizer
from distill.runtime.world import World
from distill.training import trainer as trainers
from distill.training.distillation import in_memory, load_networks
from distill.training.plain import PlainEngine
from distill.training.trainer import Trainer
from students.student import Ema

PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "L40S": 362e12, "4090": 165.2e12, "A10": 125e12}
"""FLOP/s of dense bfloat16 products, by what a device's name holds [the makers' data sheets, without sparsity]."""
ENOUGH = 20.0
"""Seconds after which no more updates are timed [own]."""
KERNELS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "addmm", "aten::mm", "aten::bmm", "splitk"),
    "optimiser and average": ("multi_tensor", "adam", "foreach", "lerp"),
    "copies": ("memcpy", "copy", "memset", "catarray", "aten::cat"),
    "softmax": ("softmax",),
    "sorts, scans, searches": ("sort", "scan", "searchsorted", "cumsum", "radix"),
    "gathers and scatters": ("index", "gather", "scatter", "select", "nonzero", "embedding"),
    "reductions and norms": ("reduce", "norm", "aten::sum", "aten::mean"),
    "elementwise": ("elementwise", "vectorized", "aten::"),
}
"""Class of kernels → what their names hold; the first that fits."""
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""Not of the whole device: for that only this measurement waits."""


def updates(name: str, job: Job) -> Iterator[tuple[str, Figures]]:
    """A network's updates; see the module."""
    size, meter = job.setting.updates[name], FlopMeter()
    with tempfile.TemporaryDirectory() as temporary:
        trainer = in_memory_trainer(size, Path(temporary), job)
        trainer.update()  # kernels are chosen and memory is reserved
        if job.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        yield "whole updates", whole(trainer, meter, size, job)
        yield "parts", parts(trainer, job)
        profiler = profiled(trainer, job)
        yield "kernels", kernels(profiler, job)
        trace = job.out / f"{re.sub('[^A-Za-z0-9]', '', name)}.trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        yield "profile", {"MB": trace.stat().st_size / 1e6}


def in_memory_trainer(size: Size, folder: Path, job: Job, **train: Any) -> Trainer:
    """Of random weights, made on the device in the precision that they are used in.

    Args:
        train: of that section of the config, beside the size's.
    """
    size.describe(folder)
    config = size.config(folder, updates=10**6, **train)
    teacher = size.network(job.device, getattr(torch, config.train.precision))
    networks = load_networks(config, (teacher, load_tokenizer("bundled:teacher")))
    return in_memory(config, networks, World(0, 1, job.device))


def whole(trainer: Trainer, meter: FlopMeter, size: Size, job: Job) -> Figures:
    """Updates as they are, the clock read at their beginning and end."""
    job.settle()
    start, count = time.perf_counter(), 0
    with meter.watching():
        while more(count, start, job):
            trainer.update()
            count += 1
    job.settle()
    seconds = (time.perf_counter() - start) / count
    peak, where = peak_flops(job)
    return {
        "seconds an update": seconds,
        "tokens a second": size.batch * size.length / seconds,
        "TFLOP an update": meter.total / count / 1e12,
        "MFU": meter.total / count / seconds / peak,
        "peak TFLOP/s": peak / 1e12,
        "peak from": where,
        "GB allocated at most": torch.cuda.max_memory_allocated() / 1e9 if job.on_gpu else None,
        "GB reserved at most": torch.cuda.max_memory_reserved() / 1e9 if job.on_gpu else None,
    }


def more(count: int, start: float, job: Job) -> bool:
    """Whether to make another update after so many: the setting's number, or fewer where they take long."""
    return count == 0 or (count < job.setting.timed and time.perf_counter() - start < ENOUGH)


def parts(trainer: Trainer, job: Job) -> Figures:
    """Updates whose parts wait for the device, so that each second has its place."""
    meter = FlopMeter()
    watch = Stopwatch(job.settle, lambda part: setattr(meter, "part", part))
    objective, phase = trainer.objective, {"now": ""}
    inner = objective.loss

    def loss(name: str, rollout: Any) -> Any:
        phase["now"] = name
        with watch.part(f"{name} forward"):
            return inner(name, rollout)

    with ExitStack() as stack:
        stack.enter_context(meter.watching())
        for owner, name, part in (
            (trainers, "training_batch", lambda: "data"),
            (objective, "rollout", lambda: "rollout"),
            (PlainEngine, "backward", lambda: f"{phase['now']} backward"),
            (PlainEngine, "step", lambda: "optimiser"),
            (Ema, "update", lambda: "average"),
        ):
            stack.enter_context(patch.object(owner, name, getattr(owner, name)))
            watch.wrap(owner, name, part)
        stack.enter_context(patch.object(objective, "loss", loss))
        start = time.perf_counter()
        while more(len(watch.updates), start, job):
            with watch.part("whole"):
                trainer.update()
            watch.close()
    figures: Figures = {f"{part}, ms": ms for part, ms in watch.milliseconds().items()}
    seconds = figures["rollout, ms"] / 1e3
    return figures | {"MFU of the rollout": meter.flops["rollout"] / len(watch.updates) / seconds / peak_flops(job)[0]}


def profiled(trainer: Trainer, job: Job) -> profile:
    """One update under torch's profiler."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if job.on_gpu else [])]
    with profile(activities=activities) as profiler:
        trainer.update()
        job.settle()
    return profiler


def kernels(profiler: profile, job: Job) -> Figures:
    """Milliseconds and launches by class of kernel, and how often the host waits.

    On a CPU, operations within others count with both. The profiler's own averages take half a minute of 32 layers,
    what it recorded a fraction of a second.
    """
    milliseconds: dict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    for event in profiler.profiler.kineto_results.events():
        calls[event.name()] += 1
        of_device = event.device_type() == torch.autograd.DeviceType.CUDA
        if of_device == job.on_gpu and not event.is_user_annotation():
            kind = kernel_class(event.name())
            milliseconds[kind] += event.duration_ns() / 1e6
            launches[kind] += 1
    ordered = sorted(milliseconds, key=lambda kind: -milliseconds[kind])
    return {
        **{f"{kind}, ms": milliseconds[kind] for kind in ordered},
        **{f"{kind}, kernels": launches[kind] for kind in ordered},
        "launches": sum(n for call, n in calls.items() if call.startswith(LAUNCHES)) if job.on_gpu else None,
        "waits of the host": sum(calls[call] for call in WAITS) if job.on_gpu else None,
    }


def kernel_class(name: str) -> str:
    """What a kernel, or on a CPU an operation, is for."""
    lower = name.lower()
    return next((kind for kind, marks in KERNELS.items() if any(mark in lower for mark in marks)), "other")


def peak_flops(job: Job) -> tuple[float, str]:
    """FLOP/s that the device is said to have in bfloat16; of one that is not known, what a large product reaches."""
    if job.on_gpu:
        name = torch.cuda.get_device_name()
        for mark, flops in PEAKS.items():
            if mark in name:
                return flops, f"data sheet of {mark}"
    size = 8192 if job.on_gpu else 512
    dtype = torch.bfloat16 if job.on_gpu else torch.float32
    a, b = (torch.randn(size, size, device=job.device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        job.settle()
        start = time.perf_counter()
        torch.mm(a, b)
        job.settle()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds), f"a product of {size} × {size}"
