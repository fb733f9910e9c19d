"""What is logged of an update: averages between two log lines."""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from torch import Tensor

from distill.runtime.world import World
from objectives.objective import LossOutput
from teachers.compilation import clock


class Meter:
    """Averages between two log lines: losses over steps, metrics over their own counts, rates over the clock.

    Rates leave out the seconds in which this process compiled.
    """

    def __init__(self, world: World):
        self.world = world
        self.start = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.since, self.updates, self.tokens = clock(), 0, 0
        self.values: defaultdict[str, list[float]] = defaultdict(list)
        self.sums: defaultdict[str, Tensor | float] = defaultdict(float)
        self.counts: defaultdict[str, Tensor | float] = defaultdict(float)

    def add(self, phase: str, loss: float, norm: float, outs: list[LossOutput]) -> None:
        """Add a phase's loss and gradient norm, and this process's metrics."""
        self.values[f"{phase}/loss"].append(loss)
        self.values[f"{phase}/grad_norm"].append(norm)
        for out in outs:
            for name, (total, count) in out.metrics.items():
                self.sums[f"{phase}/{name}"] = self.sums[f"{phase}/{name}"] + total
                self.counts[f"{phase}/{name}"] = self.counts[f"{phase}/{name}"] + count

    def read(self) -> dict[str, float]:
        """The averages over all processes since the last call."""
        line = {name: sum(values) / len(values) for name, values in self.values.items()}
        values = [*self.sums.values(), *self.counts.values()]
        if values:
            total = self.world.sum(torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])).tolist()
            counts = total[len(self.sums) :]
            line |= {name: value / max(n, 1e-12) for name, value, n in zip(self.sums, total, counts, strict=False)}
        seconds = clock() - self.since
        line |= {
            "seconds": round(time.monotonic() - self.start, 3),
            "updates_per_second": self.updates / seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / seconds,
        }
        self._reset()
        return line
