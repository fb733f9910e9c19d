"""Every open position in one pass: the full draw p(x₀ | z), of which a sampler's steps are the repetition."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from students.samplers.planned import PlannedSampler
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.host import derived
from teachers.process import MaskedProcess
from teachers.randomness import Randomness


class AtOnce(PlannedSampler):
    """One transition; nothing about it is random but the tokens. The time is the canvas's own, where it has one."""

    name: Literal["at_once"] = "at_once"

    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """See `PlannedSampler.transitions`."""
        return derived(lambda open_: torch.zeros_like(open_, dtype=torch.int64), canvas.open)

    def ask(self, work: Work) -> Asked | None:
        """See `Sampler.ask`."""
        asked = super().ask(work)
        if asked is None:
            return None
        time = work.canvas.open_share() if work.canvas.time is None else work.canvas.time
        return Asked(asked.rows, asked.positions, time[asked.rows])
