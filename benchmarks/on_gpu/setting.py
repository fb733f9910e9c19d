"""What `benchmarks/gpu.py` measures, at full size and at the size of its rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import Size

Figures = dict[str, Any]
"""Name of a figure → a number, a word or None."""


@dataclass(frozen=True)
class Setting:
    """One size of everything.

    Attributes:
        updates: the networks whose updates are measured, by name. timed: how many updates each.
        checked: the network of the checks, in float32.
        batches: rows that the sampler's latency is measured at. repeats: of each.
        blocks: what `benchmarks.cache` is told, once for each of its runs.
        attended: a network whose attention in blocks is measured, and the texts of its pass.
    """

    updates: dict[str, Size]
    timed: int
    checked: Size
    batches: tuple[int, ...]
    repeats: int
    blocks: tuple[tuple[str, ...], ...]
    attended: Size


@dataclass(frozen=True)
class Job:
    """What a section is given.

    Attributes:
        device: where to compute. out: where profiles go. have: parts that an earlier start has measured.
        earlier: the figures of the sections before this one: section → part → figures.
    """

    setting: Setting
    device: torch.device
    out: Path
    have: frozenset[str] = frozenset()
    earlier: dict[str, dict[str, Figures]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one that computes while the host goes on."""
        return self.device.type == "cuda"

    def settle(self) -> None:
        """Wait until the device has done all it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()


Section = Callable[[Job], Iterator[tuple[str, Figures]]]
"""Yields each part's name and figures as soon as they are measured."""

CRITIC = {"critic": {"lr": 1e-5}}
ROLLOUT = {"name": "k_step", "steps": [4, 8]}
KL = {"objective": {"name": "integral_kl", "rollout": ROLLOUT}, "sampler": "dilated"}
ADAPTER = {"adapter": {"rank": 16}}
ADAPTED = {
    "objective": {"name": "integral_kl", "rollout": ROLLOUT, "ratio": ADAPTER},
    "sampler": "dilated",
    "student": ADAPTER,
}

SETTINGS = {
    "full": Setting(
        updates={
            # MDLM's network (2406.07524), all weights trained
            "169 M": Size("mdlm", 768, 12, 12, 50258, 1024, 32, sections=KL, train={"precision": "bfloat16", **CRITIC}),
            # LLaDA-8B's shape, adapters of student and critic trained
            "8 B, adapters": Size(
                "llama", 4096, 32, 32, 126464, 512, 8, 12288, ADAPTED,
                {"precision": "bfloat16", "gradient_checkpointing": True, **CRITIC},
            ),
        },
        timed=6,
        checked=Size("llama", 256, 4, 4, 1024, 128, 8, sections=KL, train={"precision": "float32", **CRITIC}),
        batches=(1, 8, 64),
        repeats=5,
        blocks=(
            ("--shapes", "sdar-1.7b", "--blocks", "32", "--repeats", "1"),
            ("--shapes", "8b", "--blocks", "32", "--repeats", "1", "--alone"),
        ),
        # four of LLaDA2-mini's layers, without experts: [x_t ⊕ x₀] of 4,096 tokens
        attended=Size("llama", 2048, 4, 16, 1024, 4096, 4, block=32),
    ),
    "toy": Setting(
        updates={
            "169 M": Size("mdlm", 16, 2, 2, 60, 16, 4, sections=KL, train={"precision": "float32", **CRITIC}),
            "8 B, adapters": Size(
                "llama", 16, 2, 2, 300, 16, 4, 24, ADAPTED,
                {"precision": "float32", "gradient_checkpointing": True, **CRITIC},
            ),
        },
        timed=2,
        checked=Size("llama", 16, 2, 2, 300, 16, 4, sections=KL, train={"precision": "float32", **CRITIC}),
        batches=(1, 3),
        repeats=2,
        blocks=(("--shapes", "toy", "--lengths", "16", "--blocks", "4", "--batches", "2", "--repeats", "1"),),
        attended=Size("llama", 16, 2, 2, 300, 160, 2, block=16),
    ),
}  # fmt: skip
