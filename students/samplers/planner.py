"""Commit what a learned planner says (students/planner.py; dUltra 2512.21446's Bernoulli planner head).

Each pass draws every masked token and commits a random set of positions, never none: S ~ P(S | S ≠ ∅). The planner sees
the canvas and not the tokens drawn, so nothing is sharpened by the choice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from students.drawing import Summary
from students.planner import base_logits, draw_commits, summary, surroundings
from students.samplers.stepwise import Prediction, StepwiseSampler
from teachers.chunks import scatter
from teachers.denoiser import Denoiser
from teachers.randomness import uniform


class Planner(StepwiseSampler):
    """``bias`` is added to every logit: above 0 fewer passes than were trained for, below 0 more [own].

    A denoiser without a planner commits at the rate that fills a canvas in ``steps`` passes, where a planner starts. Of
    a text in blocks the planner is shown one block, as if there were nothing else.
    """

    adaptive: ClassVar[bool] = True
    name: Literal["planner"] = "planner"
    bias: float = 0.0  # [own]

    @property
    def summary(self) -> Summary:
        """What the head was trained to read, of the denoiser's own law whatever the temperature."""
        return lambda own, drawn_from: summary(own)

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        return super().label + f", bias {self.bias:g}" * (self.bias != 0)

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        open_, block, denoiser = prediction.candidates, prediction.block, prediction.denoiser
        logits = planned_logits(denoiser, prediction.features, prediction.summaries, open_, prediction.steps, block)
        uniforms = uniform(prediction.randomness, len(open_), open_.shape[1] + 1, real=prediction.canvas.real)
        return draw_commits(logits + self.bias, open_, uniforms, denoiser.repulsion)


def planned_logits(
    denoiser: Denoiser,
    features: Tensor,
    summaries: Tensor,
    open_: Tensor,
    steps: int | Tensor,
    real: Tensor | None = None,
) -> Tensor:
    """(B, L) logits of committing each position of ``open_``, 0 elsewhere.

    Args:
        features, summaries: (N, H) and (N, 2) at these positions.
        steps: of the rate where there is no planner, (B,) or one for all.
        real: (B, L), False where a token is padding; None where none is.
    """
    where = surroundings(open_, real)
    logits = denoiser.commit_logits(features, summaries, where)
    if logits is None:
        if isinstance(steps, Tensor):
            steps = steps[:, None].expand_as(open_)[open_]
        logits = base_logits(where[:, 0], steps)
    return scatter(logits, open_)
