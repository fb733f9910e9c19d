"""Ancestral sampling of the masked process (Sahoo et al. 2406.07524, section 3.2.3), with only the passes that matter.

Whether a position is revealed in a transition does not depend on what the network says. So the transition at which
each position is revealed is drawn beforehand, and a row is sent through the network only at transitions that reveal one
of its positions. The law of the samples is that of plain ancestral sampling, for time-conditioned denoisers as well,
but a row of L tokens takes at most L passes, whatever the number of steps.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from students.samplers.planned import PlannedSampler
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform


class Ancestral(PlannedSampler):
    """The reverse process itself: the more steps, the fewer positions of a step, also where many steps reveal none."""

    bounded: ClassVar[bool] = False
    name: Literal["ancestral"] = "ancestral"

    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """See `PlannedSampler.transitions`."""
        return reveal_transitions(canvas.tokens.shape, steps, randomness, process, canvas.real)


def reveal_transitions(
    shape: torch.Size | tuple[int, int],
    steps: int | Tensor,
    randomness: Randomness,
    process: MaskedProcess,
    real: Tensor | None = None,
) -> Tensor:
    """Draw the transition that reveals each position: (B, L) in [0, steps).

    A position is unmasked after transition k with probability α(1 − (k+1)/steps); the last one reveals the rest.

    Args:
        steps: (B,), or the same for all rows. real: as of `teachers.randomness.uniform`.
    """
    steps = torch.as_tensor(steps, device=randomness.device).view(-1, 1)
    passed = 1 - process.time_of(uniform(randomness, *shape, real=real))
    return (passed * steps).long().clamp(max=steps - 1)
