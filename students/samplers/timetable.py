"""How many tokens each pass commits where their number is fixed beforehand, as each family's released sampler counts.

All of them spread n tokens over S passes; they differ in where the rounding goes, which decides the text. A pass that
would commit nothing reads what the pass before it read, so it is left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

Timetable = Literal["llada", "sdar", "dllm", "dream", "rnd1"]
"""Whose: "sdar" is "llada" of a whole block, whatever part of it is open; LLaDA2.0 counts so as well."""

DREAM_EPSILON = 1e-3  # [code] the time at which Dream ends


@lru_cache(maxsize=4096)
def tokens_per_pass(timetable: Timetable, total: int, steps: int) -> tuple[int, ...]:
    """What each pass commits, in order; every number is at least 1 and their sum is ``total``.

    >>> tokens_per_pass("llada", 8, 3), tokens_per_pass("dllm", 4, 3), tokens_per_pass("dream", 6, 4)
    ((3, 3, 2), (1, 1, 2), (1, 1, 1, 3))

    Args:
        total: tokens to write. steps: passes that there may be, at least 1.
    """
    counts, left = [], total
    for number in range(steps):
        count = left if number == steps - 1 else min(left, _count(timetable, total, left, number, steps))
        counts.append(count)
        left -= count
    return tuple(count for count in counts if count > 0)


def _count(timetable: Timetable, total: int, left: int, number: int, steps: int) -> int:
    """Of pass ``number``, which is not the last one; ``left`` are not written yet."""
    if timetable == "dllm":
        return _dllm(left, number, steps)
    if timetable == "dream":
        # int(n(1 − s/t)) of times that fall linearly from 1 to ε
        t, s = (1 - k * (1 - DREAM_EPSILON) / steps for k in (number, number + 1))
        return int(left * (1 - s / t))
    if timetable == "rnd1":
        # so many stay masked, in float32 as published
        return left - int(np.float32(total) * np.float32((steps - 1 - number) / steps))
    return total // steps + (number < total % steps)


def _dllm(left: int, number: int, steps: int) -> int:
    """n(1 − s/t), rounded half to even; its times and their ratio are float32 [code], which decides ties."""
    one = np.float32(1)
    t, s = (np.float32((steps - k) / steps) for k in (number, number + 1))
    stay = (one - (one - s)) / (one - (one - t))
    return round(left * (1 - float(stay)))
