"""Pseudo-trajectory distillation (d3LLM, 2601.07568): states from the teacher's unmasking order.

A window of each row is shown as the teacher had it when a share r of the window was still masked: the tokens that it
unmasked last are hidden. Before the window everything is shown, after it everything is masked and not scored. The loss
is certainty forcing's (objectives/certainty.py), on these canvases and on their complements. Over the run the smallest
r rises (each row draws r between it and the largest), and the window grows.

Labels are the teacher's own tokens, or, where there are data, theirs: the teacher then gives the order alone.

What the released code gets wrong: it takes the window's pattern from the state after ⟨window's start + unmasked⟩
steps, which is right only if the teacher decoded one token a step in blocks of the window's size; in every other case
(windows of 16 and 24 on a teacher with blocks of 32) r is not what was asked, and an empty pattern has no loss. It
draws one r for a batch, and divides by the batch's masked and correct positions, so that micro-batches weigh
differently. Here the order is compared within the window, so r is exact, one a row; at least one token is hidden.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from objectives.certainty import CanvasRollout, CertaintyObjective, after_block, draw_block, in_block, within
from objectives.objective import Distillation, ObjectiveConfig, labels_of, order_of
from teachers.canvas import Batch
from teachers.randomness import RowStreams, uniform


class TrajectoryConfig(ObjectiveConfig):
    """Every default with its origin. Published beside them: a LoRA adapter of rank 256, lr 2e-5, 3 epochs [code].

    Attributes:
        smallest_ratio: the smallest share of masks in the window, at the start and at the end of the run.
        largest_ratio: the largest, throughout.
        window: its tokens, at the start and at the end.
        complement: also train on what the first canvas shows.
        entropy_weight, temperature: of certainty forcing.
    """

    name: Literal["trajectory"] = "trajectory"
    smallest_ratio: tuple[float, float] = (0.0, 0.8)  # rising [paper], from and to [code]
    largest_ratio: float = Field(default=0.8, gt=0, le=1)  # [code]
    window: tuple[PositiveInt, PositiveInt] = (
        16,
        32,
    )  # growing [paper], from and to [code]; there after 2/3 of the run
    complement: bool = True  # [code]
    entropy_weight: float = Field(default=1.0, ge=0)  # [code] for Dream; 2 is the default in the code for LLaDA
    temperature: float = Field(default=0.5, gt=0)  # [code]

    @model_validator(mode="after")
    def _ratios(self) -> TrajectoryConfig:
        if not all(0 <= ratio <= self.largest_ratio for ratio in self.smallest_ratio):
            raise ValueError(
                f"smallest_ratio is {self.smallest_ratio}; give two shares between 0 and largest_ratio "
                f"{self.largest_ratio}"
            )
        return self

    def build(self, distillation: Distillation) -> PseudoTrajectory:
        """See `ObjectiveConfig.build`."""
        return PseudoTrajectory(self, distillation)


def unmasking_rank(order: Tensor, within: Tensor, uniforms: Tensor) -> Tensor:
    """Number each row's positions of ``within`` as the teacher unmasked them, those of one pass in random order.

    Args:
        order: (B, L) passes. within: (B, L) bool. uniforms: (B, L) in [0, 1).

    Returns:
        (B, L), 0 … n−1 at the n positions of a row, and larger elsewhere.
    """
    when = (order.double() + uniforms).masked_fill(~within, math.inf)
    return when.argsort(dim=1, stable=True).argsort(dim=1)


def last_unmasked(order: Tensor, within: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
    """The positions of ``within`` that the teacher had still masked when a share ``ratio`` (B,) of them was left.

    Returns:
        (B, L) bool: ⌈ratio · n⌉ of a row's n positions, at least one, those unmasked last.
    """
    size = within.sum(1)
    hidden = torch.maximum((ratio * size - 1e-9).ceil().long(), torch.ones_like(size))
    return within & (unmasking_rank(order, within, uniforms) >= (size - hidden)[:, None])


def progress(update: int, updates: int) -> float:
    """0 at the first update, 1 at the last."""
    return update / max(1, updates - 1)


class PseudoTrajectory(CertaintyObjective):
    """d3LLM: windows masked as the teacher unmasked them, and the curricula."""

    needs = "trajectories"

    def __init__(self, config: TrajectoryConfig, distillation: Distillation):
        super().__init__(distillation, config.entropy_weight, config.temperature)
        self.config = config
        self.smallest_ratio, self.window = config.smallest_ratio[0], config.window[0]

    def begin(self, update: int, updates: int) -> bool:
        """Move the curricula on, linearly."""
        done = progress(update, updates)
        (low, high), (small, large) = self.config.smallest_ratio, self.config.window
        self.smallest_ratio, self.window = low + done * (high - low), round(small + done * (large - small))
        return False

    def rollout(self, batch: Batch, randomness: RowStreams) -> CanvasRollout:
        """A window of each row at a share of masks, as the teacher unmasked it, and the complement."""
        open_, labels, draws = batch.canvas.open, labels_of(batch), uniform(randomness, len(batch), 2)
        weights = self.tail.weights(labels, open_)
        # 1. a window, counted among the open positions, and a share of masks
        start, end = draw_block(open_, self.window, draws[:, 0], weights)
        window = in_block(open_, start, end)
        ratio = self.smallest_ratio + draws[:, 1] * (self.config.largest_ratio - self.smallest_ratio)
        # 2. what the teacher unmasked last of it, and the complement
        last = last_unmasked(order_of(batch), window, ratio, uniform(randomness, *open_.shape))
        scored = torch.stack([last, window & ~last] if self.config.complement else [last], 1)
        # 3. everything after it is hidden too, and not scored
        hidden = scored | after_block(open_, end)[:, None]
        return CanvasRollout(batch.canvas, labels, hidden, scored, weights=within(weights, window))
