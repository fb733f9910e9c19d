"""Ancestral sampling of the masked process (Sahoo et al. 2406.07524, section 3.2.3), with only the passes that matter.

Whether a position is revealed in a transition does not depend on what the network says. So the transition at which
each position is revealed is drawn beforehand, and a row is sent through the network only at transitions that reveal one
of its positions. The law of the samples is that of plain ancestral sampling, for time-conditioned denoisers as well,
but a row of L tokens takes at most L passes, whatever the number of steps.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from students.samplers.sampler import (
    LOG_LINEAR,
    CountedDenoiser,
    Draw,
    SampleOutput,
    Sampler,
    SamplerConfig,
    draw_from,
)
from teachers.chunks import row_sums
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform


class AncestralConfig(SamplerConfig):
    """``temperature`` divides the log-probabilities of tokens: below 1 it writes sharper than the model says."""

    name: Literal["ancestral"] = "ancestral"  # type: ignore[assignment]
    temperature: float = Field(1.0, gt=0)

    @property
    def label(self) -> str:
        """With the temperature, where it is not 1."""
        return self.name if self.temperature == 1 else f"{self.name}, temperature {self.temperature:g}"

    def build(self, critic: nn.Module | None = None) -> Sampler:
        """See `SamplerConfig.build`."""
        return partial(sample, temperature=self.temperature)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    canvas: Tensor,
    steps: int,
    generator: torch.Generator,
    process: MaskedProcess = LOG_LINEAR,
    draw: Draw = "exact",
    temperature: float = 1.0,
) -> SampleOutput:
    """See `Sampler` and `AncestralConfig`."""
    where = canvas == denoiser.spec.mask_id
    transition = reveal_transitions(where.shape, steps, generator, process)
    return reveal(denoiser, canvas, where, transition, steps, generator, draw, temperature)


@torch.no_grad()
def reveal(
    denoiser: Denoiser,
    start: Tensor,
    where: Tensor,
    transition: Tensor,
    steps: int,
    generator: torch.Generator,
    draw: Draw,
    temperature: float = 1.0,
) -> SampleOutput:
    """Draw every position of ``where`` (B, L) once. Pass n serves the n-th revealing transition of rows that have one.

    Args:
        start: (B, L) canvas; what it holds at ``where`` until then, masks or not, is what the denoiser sees there.
        transition: (B, L) in [0, ``steps``), the one that reveals each position.
    """
    counted = CountedDenoiser(denoiser, start, steps)
    law = denoiser.head if temperature == 1 else lambda f: (denoiser.head(f) / temperature).log_softmax(-1)
    event, events = number_events(transition, where)
    z, total = start.clone(), torch.zeros(len(start), dtype=torch.float64, device=start.device)
    for n in range(int(events.max())):
        rows = (events > n).nonzero().squeeze(1)
        part, now = z[rows], event[rows] == n
        t = 1 - transition[rows].masked_fill(~now, 0).amax(1).double() / steps
        features = counted.features(part, rows, now, t)
        part[now], log_prob = draw_from(law, denoiser.spec.vocabulary, generator, draw, features)
        z[rows] = part
        total[rows] += row_sums(log_prob.double(), now)
    return counted.output(z, log_prob=total if draw == "exact" else None)


def reveal_transitions(
    shape: torch.Size | tuple[int, int],
    steps: int | Tensor,
    randomness: Randomness,
    process: MaskedProcess = LOG_LINEAR,
) -> Tensor:
    """Draw the transition k, from t = 1 − k/steps to 1 − (k+1)/steps, that reveals each position: (B, L) in [0, steps).

    A position is unmasked after transition k with probability α(1 − (k+1)/steps); the last transition reveals the rest.

    Args:
        steps: (B,) int64, or a number that is the same in all rows.
    """
    steps = torch.as_tensor(steps, device=randomness.device).view(-1, 1)
    passed = 1 - process.time_of(uniform(randomness, *shape))
    return (passed * steps).long().clamp(max=steps - 1)


def number_events(transition: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Number each row's distinct revealing transitions in order.

    Returns:
        (B, L) the number of the event that reveals each masked position, −1 elsewhere; (B,) events of each row.
    """
    never = torch.iinfo(transition.dtype).max
    ordered, order = transition.masked_fill(~masked, never).sort(dim=1)
    rank = torch.zeros_like(ordered)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    event = torch.empty_like(rank).scatter_(1, order, rank).masked_fill_(~masked, -1)
    return event, event.amax(1) + 1
