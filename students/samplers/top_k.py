"""Top-k confidence (LLaDA, Nie et al. 2502.09992): draw every masked token, commit the most probable ones.

Each step commits ⌊N/steps⌋ of a row's N open positions, one more in the first N mod steps of them, so a row takes
exactly min(steps, N) passes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from students.samplers.sampler import Prediction, StepwiseSampler


class TopK(StepwiseSampler):
    """The published rule takes each position's most probable token: ``draw: greedy``."""

    name: Literal["top_k"] = "top_k"

    @property
    def blind(self) -> bool:
        """It prefers positions whose drawn tokens are probable."""
        return False

    def confidence(self, prediction: Prediction) -> Tensor:
        """(N,) what positions are ranked by."""
        return prediction.confidence

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        total, steps, open_ = prediction.to_write, prediction.steps, prediction.canvas.open
        # 1. how many of a row, (R,)
        count = total // steps + (prediction.number < total % steps)
        # 2. its open positions from the most confident to the least, and the others behind them
        confidence = self.confidence(prediction)
        never = torch.full(open_.shape, -torch.inf, dtype=confidence.dtype, device=open_.device)
        ranked = never.masked_scatter(open_, confidence).argsort(dim=1, descending=True, stable=True)
        # 3. the first ones
        return open_ & (ranked.argsort(dim=1) < count[:, None])
