"""From figures to places on a plot, and where its ticks stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """The figures from ``low`` to ``high`` on an axis that goes from ``start`` to ``end``, in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        """Where a figure stands, to a tenth of a pixel."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """About five figures that are easy to read; on a log axis as many of each decade as there is room for."""
        logarithmic = _log_ticks(self.low, self.high) if self.log else []
        return logarithmic if len(logarithmic) > 2 else _linear_ticks(self.low, self.high)

    def apart(self, values: Iterable[float], room: Callable[[float], float]) -> list[float]:
        """Those of the figures within the axis whose names do not touch: the largest, and then smaller ones.

        Args:
            room: pixels that a figure's name takes.
        """
        chosen: list[float] = []
        for value in sorted((v for v in values if self.low <= v <= self.high), reverse=True):
            last = chosen[-1] if chosen else None
            if last is None or abs(self(last) - self(value)) >= (room(last) + room(value)) / 2:
                chosen.append(value)
        return chosen[::-1]


def extent(values: Sequence[float], log: bool) -> Interval:
    """From the smallest figure to the largest, and some room on both sides."""
    low, high = min(values), max(values)
    if log:
        room = max(1.03, (high / low) ** 0.07)
        return low / room, high * room
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def tick_text(value: float) -> str:
    """A tick's figure.

    >>> tick_text(1024.0), tick_text(0.1 + 0.2)
    ('1,024', '0.3')
    """
    return f"{value:,.6g}"


def _log_ticks(low: float, high: float) -> list[float]:
    digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 1000 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
