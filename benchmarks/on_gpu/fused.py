"""What is fused with a head, in turns with the same from all log-probabilities: milliseconds, and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.latency import clocked
from benchmarks.on_gpu.setting import Figures, Job
from benchmarks.shapes import Size
from teachers.denoiser import DenoiserSpec, log_probabilities
from teachers.ops.draw import head_and_draw
from teachers.ops.head import LinearHead
from teachers.randomness import categorical

ROWS = 4
"""Texts whose positions are all asked."""


def fused(job: Job) -> Iterator[tuple[str, Figures]]:
    """The head alone of each network whose updates are measured, in the type that it has there."""
    for name, size in job.setting.updates.items():
        heads = Heads(size, job)
        yield f"{name}, draw", compared(heads.draws(), job)


class Heads:
    """A head, random states, and their uniforms."""

    def __init__(self, size: Size, job: Job):
        torch.manual_seed(0)
        place = {"device": job.device, "dtype": torch.bfloat16 if job.on_gpu else torch.float32}
        self.spec = DenoiserSpec(size.vocabulary - 1, size.vocabulary, size.length)
        self.layer = nn.Linear(size.hidden, size.vocabulary, bias=False, **place).requires_grad_(False)
        self.features = torch.randn(ROWS * size.length, size.hidden, **place)
        self.uniforms = torch.rand(len(self.features), dtype=torch.float64, device=job.device)

    def law(self, features: Tensor) -> Tensor:
        """(N, V)."""
        return log_probabilities(self.layer(features), self.spec)

    @property
    def head(self) -> LinearHead:
        """The same, for what is fused with it."""
        found = LinearHead.of(self.layer, self.spec.excluded_ids(self.layer.weight.device))
        assert found is not None
        return found

    def draws(self) -> dict[str, Callable[[], object]]:
        """A token at each position."""

        @torch.no_grad()
        def whole() -> Tensor:
            return categorical(self.law(self.features), self.uniforms)

        return {"fused": lambda: head_and_draw(self.head, self.features, self.uniforms), "whole": whole}


def compared(ways: dict[str, Callable[[], object]], job: Job) -> Figures:
    """Medians over the repeats, and on a GPU the memory that each of two takes beside what it is given.

    The ratio is the first one's time over the second one's.
    """
    figures: Figures = {f"{name}, MB": taken(way, job) for name, way in ways.items()}
    turns = [{name: clocked(way, job) for name, way in ways.items()} for _ in range(job.setting.repeats)]
    figures |= {f"{name}, ms": 1e3 * statistics.median(turn[name] for turn in turns) for name in ways}
    first, second = ways
    return figures | {"ratio": statistics.median(turn[first] / turn[second] for turn in turns)}


def taken(way: Callable[[], object], job: Job) -> float | None:
    """MB at the most; None on a CPU. It is also what warms up."""
    if not job.on_gpu:
        way()
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
