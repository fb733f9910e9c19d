"""The exact law of ancestral sampling, where it can be computed: for measuring a sampler without any samples.

Which transition reveals which position does not depend on what the network says. Given that, the probability of a row
is a product over the network's own conditionals; without it, a mixture over all ways to reveal.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from students.fill import fill
from students.samplers.planned import PlannedSampler
from students.samplers.work import LOG_LINEAR
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import Randomness


class Scheduled(PlannedSampler):
    """Transitions (B, L) that somebody else has chosen."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    name: Literal["scheduled"] = "scheduled"
    transition: Tensor

    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """See `PlannedSampler.transitions`."""
        return self.transition


def ancestral_log_prob(denoiser: Denoiser, tokens: Tensor, transition: Tensor, steps: int) -> Tensor:
    """log q(x | which transition reveals what): (B,) float64 nats, of rows sampled from an all-masked canvas.

    Args:
        tokens: (B, L) clean rows.
        transition: (B, L) in [0, ``steps``), as `students.samplers.ancestral.reveal_transitions` draws it.
    """
    rows, length = tokens.shape
    blank = Canvas.blank(rows, length, denoiser.spec.mask_id, tokens.device)
    nothing_random = torch.Generator(tokens.device)
    filled = fill(denoiser, blank, Scheduled(transition=transition), steps, nothing_random, given=tokens)
    assert filled.log_prob is not None
    return filled.log_prob


@torch.no_grad()
def ancestral_law(denoiser: Denoiser, rows: Tensor, steps: int, process: MaskedProcess = LOG_LINEAR) -> Tensor:
    """The probability that ancestral sampling from an all-masked canvas writes each row: (N,) float64.

    All ``steps``^L ways to reveal are enumerated: for rows of a few tokens.

    Args:
        rows: (N, L), such as `SourceDenoiser.all_rows` gives, whose order `SourceDenoiser.kl` expects.
    """
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    chance = process.alpha(times).diff().tolist()
    law = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for pattern in itertools.product(range(steps), repeat=rows.shape[1]):
        transition = torch.tensor(pattern, device=rows.device).expand_as(rows)
        weight = torch.tensor([chance[k] for k in pattern], dtype=torch.float64).prod()
        law += weight.to(law) * ancestral_log_prob(denoiser, rows, transition, steps).exp()
    return law
