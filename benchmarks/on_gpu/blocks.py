"""Sampling block by block with the exact cache of keys and values, and without: `benchmarks.cache` at a GPU's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from benchmarks import cache
from benchmarks.on_gpu.setting import Figures, Job


def blocks(job: Job) -> Iterator[tuple[str, Figures]]:
    """One part for each fill."""
    for words in job.setting.blocks:
        for one in cache.main(words):
            name = f"{one.shape}, {one.batch} rows of {one.length} in blocks of {one.block}"
            ways = {"cached": one.cached, "without": one.whole}
            figures = {
                f"{way}, {key}": value
                for way, run in ways.items()
                if run is not None
                for key, value in asdict(run).items()
            }
            yield name, {"passes": one.passes, **figures, "same": one.same, "tokens a second": one.tokens_per_second}
