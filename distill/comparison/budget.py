"""What a comparison's runs may spend: a budget, in updates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from teachers.errors import UserError

CALIBRATION = 20
"""Updates of the short run that measures how long one takes, where the budget is time [own]."""
WARM_UP = 3
"""Updates at its start that are not representative [own]: memory is allocated, kernels are chosen."""


@dataclass(frozen=True)
class Budget:
    """What every run may spend: ``minutes`` of training or ``updates``; the other is None."""

    minutes: float | None
    updates: int | None

    def __str__(self) -> str:
        return f"{self.minutes:g}m" if self.minutes is not None else f"{self.updates}u"

    def in_updates(self, seconds_per_update: float | None) -> int:
        """How many updates a run makes.

        Args:
            seconds_per_update: as calibrated; only a budget of time needs it.
        """
        if self.updates is not None:
            return self.updates
        assert self.minutes is not None
        assert seconds_per_update is not None, "a budget of time needs a calibration"
        return max(1, round(self.minutes * 60 / seconds_per_update))


def parse_budget(text: str) -> Budget:
    """``10m`` (minutes) or ``2000u`` (updates).

    Raises:
        UserError: anything else, or nothing.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)m|(\d{1,9})u", text.strip())
    if found is None or float(found[1] or found[2]) == 0:
        raise UserError(f"--budget {text!r} is not a budget; give minutes of training, 10m, or updates, 2000u")
    return Budget(float(found[1]) if found[1] else None, int(found[2]) if found[2] else None)


def update_seconds(lines: list[dict[str, Any]]) -> list[float]:
    """How long the updates took, by the lines of a metrics.jsonl; start-up, watching and the last checkpoint are
    between no two lines, so they do not count."""
    return [line["tokens"] / line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]


def seconds_per_update(lines: list[dict[str, Any]]) -> float:
    """Mean time of an update of a calibration run, without its first ones."""
    seconds = update_seconds(lines)[WARM_UP:]
    return sum(seconds) / len(seconds)
