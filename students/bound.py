"""The bound on what any student can reach, over the schedules of a sampler that looks at no prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from students.samplers.planned import PlannedSampler
from students.samplers.work import LOG_LINEAR
from teachers.canvas import Canvas
from teachers.oracle.bounds import bounds
from teachers.oracle.source import Source
from teachers.process import MaskedProcess
from teachers.randomness import Randomness


@dataclass(frozen=True)
class Bound:
    """Of the mean over schedules c of min KL(student given c ‖ source), in nats a token.

    An evaluation's ``divergence_nats`` with the same sampler, steps and process is at least ``lower``.

    Attributes:
        lower, lower_error: no student has less; the mean over schedules and its standard error.
        reached, reached_error: students, one for each schedule, have at most this.
        schedules: how many were drawn.
    """

    lower: float
    lower_error: float
    reached: float
    reached_error: float
    schedules: int


def least_divergence(
    source: Source,
    sampler: PlannedSampler,
    steps: int,
    schedules: int,
    randomness: Randomness,
    process: MaskedProcess = LOG_LINEAR,
) -> Bound:
    """See `teachers.oracle.bounds`.

    Args:
        schedules: how many to draw, at least 2.

    Raises:
        UserError: a source for which nobody has derived it.
    """
    length = source.row_length
    assert length is not None, "every source with bounds has rows of one length"
    canvas = Canvas.blank(schedules, length, source.tokens)
    drawn = sampler.transitions(canvas, torch.full((schedules,), steps), process, randomness)
    distinct, which = drawn.unique(dim=0, return_inverse=True)
    lower, reached = (values[which] / length for values in bounds(source, distinct))
    return Bound(*_mean(lower), *_mean(reached), schedules)


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
