"""What the exact cache of keys and values saves: the same texts, block by block, with it and without.

    python benchmarks/cache.py                                  # two networks of some million parameters, one thread
    python benchmarks/cache.py --shapes sdar-1.7b 8b            # random weights in bfloat16, on a GPU
    python benchmarks/cache.py --shapes 8b --alone --repeats 1  # with the cache only
    python benchmarks/cache.py --shapes toy --lengths 32 --blocks 4

Both ways write the same canvases in turns, in one process, and the median is taken. On a CPU seconds are those that the
process computed, whatever else runs there; on a GPU they are the clock's. Where memory is measured, on a GPU, it is the
peak of a whole fill, weights included. `--json` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from students.fill import Filled, fill
from students.samplers import TopK
from teachers.canvas import Canvas
from teachers.delegating import DelegatingDenoiser
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.randomness import RowStreams

TOKENS_A_PASS = 16  # of a block, or all of a smaller one


@dataclass(frozen=True)
class Size:
    """A Qwen3-shaped network: its sizes, and the settings it is measured at unless others are given."""

    vocabulary: int
    fields: dict[str, Any]
    lengths: tuple[int, ...] = (256, 512, 1024)
    blocks: tuple[int, ...] = (32, 16, 4)
    batches: tuple[int, ...] = (1, 8)


def qwen3(hidden: int, layers: int, heads: int, kv: int, head: int, inner: int, tied: bool = True) -> dict[str, Any]:
    """The fields of ``model.shape``."""
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": head, "intermediate_size": inner, "tie_word_embeddings": tied,
    }  # fmt: skip


SIZES = {
    "toy": Size(64, qwen3(16, 2, 2, 1, 8, 24)),
    "small": Size(1024, qwen3(256, 8, 4, 4, 64, 768)),
    "small, 32k entries": Size(32768, qwen3(256, 8, 4, 4, 64, 768), lengths=(1024,), blocks=(32,), batches=(1,)),
    "sdar-1.7b": Size(151936, qwen3(2048, 28, 16, 8, 128, 6144), (1024,), (4, 32), (1, 32)),
    "8b": Size(151936, qwen3(4096, 36, 32, 8, 128, 12288, tied=False), (1024,), (4, 32), (1, 32)),
}


class Uncached(DelegatingDenoiser):
    """The same network, whose passes send whole rows."""

    def __init__(self, inner: Denoiser):
        super().__init__(inner)
        self.capabilities = inner.capabilities - {"cache"}


@dataclass(frozen=True)
class Run:
    """Of a fill: seconds, the median; tokens sent through the network; and the peak of memory in GB, None on a CPU."""

    seconds: float
    sent: int
    memory: float | None


@dataclass(frozen=True)
class Measurement:
    """A fill with the cache and, unless that was left out, without.

    Attributes:
        passes: of each row. same: whether both made the same passes and wrote the same text.
    """

    shape: str
    length: int
    block: int
    batch: int
    passes: int
    cached: Run
    whole: Run | None
    same: bool | None

    @property
    def tokens_per_second(self) -> float:
        """Written with the cache, all rows together."""
        return self.batch * self.length / self.cached.seconds


def network(size: Size, length: int, block: int, device: torch.device) -> Denoiser:
    """Random weights, in bfloat16 on a GPU; what they cost and weigh is as of trained ones."""
    torch.manual_seed(0)
    spec = DenoiserSpec(0, size.vocabulary, length, attention="block", block_size=block)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    with device:
        denoiser = create_denoiser("qwen3", size.fields, spec).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return denoiser


def timed(denoiser: Denoiser, canvas: Canvas, block: int) -> tuple[Filled, Run]:
    """Fill a canvas."""
    rule, steps = TopK(order="random", block_length=block, budget="block"), max(1, block // TOKENS_A_PASS)
    randomness = RowStreams(0, (1,), range(len(canvas)), canvas.device)
    on_gpu = canvas.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = clock()
    filled = fill(denoiser, canvas, rule, steps, randomness)
    filled.nfe.tolist()  # waits for the device
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    return filled, Run(clock() - start, filled.query_tokens, memory)


def measure(
    shape: str, length: int, block: int, batch: int, repeats: int, alone: bool, device: torch.device
) -> Measurement:
    """Both ways in turns, ``repeats`` times, or the cached one ``alone``; a block of a row warms up."""
    cached = network(SIZES[shape], length, block, device)
    ways = [cached] if alone else [cached, Uncached(cached)]
    for way in ways:
        timed(way, Canvas.blank(1, block, 0, device), block)
    canvas = Canvas.blank(batch, length, 0, device)
    turns = [[timed(way, canvas, block) for way in ways] for _ in range(repeats)]
    texts = [filled for filled, _ in turns[0]]
    runs = [
        replace(turns[0][way][1], seconds=statistics.median(turn[way][1].seconds for turn in turns))
        for way in range(len(ways))
    ]
    same = None if alone else all(torch.equal(getattr(texts[0], n), getattr(texts[1], n)) for n in ("tokens", "nfe"))
    return Measurement(shape, length, block, batch, int(texts[0].nfe.max()), runs[0], None if alone else runs[1], same)


def table_of(measurements: Sequence[Measurement]) -> Table:
    """As a person reads it."""
    table = Table(title="the same texts with the cache, and without")
    names = "network", "length", "block", "rows", "passes", "sent", "of", "seconds", "without", "ratio", "tokens/s"
    for name in (*names, "GB", "without"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for one in measurements:
        cached, whole = one.cached, one.whole
        table.add_row(
            one.shape, *map(str, (one.length, one.block, one.batch, one.passes)), f"{cached.sent:,}",
            "–" if whole is None else f"{whole.sent:,}", f"{cached.seconds:.2f}",
            "–" if whole is None else f"{whole.seconds:.2f}",
            "–" if whole is None else f"{whole.seconds / cached.seconds:.1f}", f"{one.tokens_per_second:,.0f}",
            *("–" if run is None or run.memory is None else f"{run.memory:.1f}" for run in (cached, whole)),
        )  # fmt: skip
    return table


def main(arguments: Sequence[str] | None = None) -> list[Measurement]:
    """Measure what the command line says, print it, and give it back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SIZES, default=["small", "small, 32k entries"])
    for name in ("lengths", "blocks", "batches"):
        parser.add_argument(f"--{name}", nargs="+", type=int, help="in place of the shape's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="with the cache only")
    parser.add_argument("--json", type=Path, help="where figures are added, a line each")
    wanted = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measurements = []
    for shape in wanted.shapes:
        size = SIZES[shape]
        for length in wanted.lengths or size.lengths:
            for block in wanted.blocks or size.blocks:
                for batch in wanted.batches or size.batches:
                    one = measure(shape, length, block, batch, wanted.repeats, wanted.alone, device)
                    measurements.append(one)
                    if wanted.json is not None:
                        with wanted.json.open("a", encoding="utf-8") as file:
                            file.write(json.dumps({**asdict(one), "device": str(device)}) + "\n")
    Console(width=140).print(table_of(measurements))
    return measurements


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
