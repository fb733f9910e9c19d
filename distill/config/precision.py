"""What ``precision: auto`` stands for, here and now."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from distill.config import AnyConfig, EvaluateConfig, TrainConfig
from distill.config.deepspeed import zero_section
from distill.runtime.run_folder import flatten

Settled = Literal["float32", "bfloat16"]
ROWS, INPUTS, OUTPUTS = 256, 256, 768
"""Of the product that is timed, a layer of a small model [own]."""
CLEARLY = 1.3
"""How many times as fast bfloat16 must be [own]: where it hardly gains, its rounding is not worth it."""


@functools.cache
def faster_precision() -> Settled:
    """bfloat16 where this machine multiplies matrices clearly faster in it than in float32, else float32.

    A GPU has bfloat16 or not. Of CPUs, only those with AMX or AVX512-BF16 do, and others take up to forty times as long
    as in float32; so a product is timed, once a process, in half a second at most.
    """
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = product_seconds(torch.bfloat16) * CLEARLY <= product_seconds(torch.float32)
    return "bfloat16" if fast else "float32"


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of a product of two matrices on the CPU, the best of a few: the first one sets things up."""
    one, other = torch.ones(ROWS, INPUTS, dtype=dtype), torch.ones(INPUTS, OUTPUTS, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        one.matmul(other)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def settled(
    config: AnyConfig, recorded: dict[str, Any] | None = None, faster: Callable[[], Settled] = faster_precision
) -> AnyConfig:
    """The config with float32 or bfloat16 in place of every ``precision: auto``.

    A command calls this on one process, before anything is loaded: two that time products at once disturb each other.

    Args:
        recorded: the settled config of what goes on; its values are kept, whatever this machine is faster in.
        faster: decides where nothing is recorded.
    """
    before = flatten(recorded or {})
    changed = {}
    for name, section in dict(config).items():
        if not isinstance(section, TrainConfig | EvaluateConfig) or section.precision != "auto":
            continue
        precision = before.get(f"{name}.precision")
        if name == "train" and zero_section(config.deepspeed).get("stage") == 0:
            precision = "float32"  # the only one that ZeRO 0 is right in, see `check_deepspeed`
        elif precision not in ("float32", "bfloat16"):
            precision = faster()
        changed[name] = section.model_copy(update={"precision": precision})
    return config.model_copy(update=changed)
