"""Reveal positions that lie far apart in the same pass: dilated scheduling (Luxembourg et al. 2506.19037).

What a pass reveals is drawn independently, and neighbours depend on each other most. So each pass takes positions as
far from each other, and from what is known, as they can be: in the order of the bit-reversed position (van der Corput's
sequence: 0, ½, ¼, ¾, … of the row), rotated at random, in ``steps`` passes of equal size. The order looks at no token,
so that one position a pass gives the denoiser's own law, as in any order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from students.samplers.ancestral import reveal
from students.samplers.sampler import LOG_LINEAR, Draw, SampleOutput, Sampler, SamplerConfig
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform


class DilatedConfig(SamplerConfig):
    """Nothing to set. A row takes exactly ``steps`` passes, or as many as it has masks."""

    name: Literal["dilated"] = "dilated"  # type: ignore[assignment]

    def build(self, critic: nn.Module | None = None) -> Sampler:
        """See `SamplerConfig.build`."""
        return sample


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    canvas: Tensor,
    steps: int,
    generator: torch.Generator,
    process: MaskedProcess = LOG_LINEAR,
    draw: Draw = "exact",
) -> SampleOutput:
    """See `Sampler`."""
    where = canvas == denoiser.spec.mask_id
    transition = dilated_transitions(where, steps, generator, process)
    return reveal(denoiser, canvas, where, transition, steps, generator, draw)


def dilated_transitions(
    where: Tensor, steps: int | Tensor, randomness: Randomness, process: MaskedProcess = LOG_LINEAR
) -> Tensor:
    """The transition that reveals each position of ``where`` (B, L): (B, L) in [0, steps), random by a rotation alone.

    After transition k a part α(1 − (k+1)/steps) of a row's positions is unmasked, as in ancestral sampling on average.

    Args:
        steps: (B,) int64, or a number that is the same in all rows.
    """
    rows, length = where.shape
    bits = max(1, (length - 1).bit_length())
    rotation = (uniform(randomness, rows, 1) * 2**bits).long()
    turned = (torch.arange(length, device=where.device) + rotation) % 2**bits
    key = sum(((turned >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    rank = key.masked_fill(~where, 2**bits).argsort(1).argsort(1)
    # the middle of a rank's share of the row, so that none falls on a boundary
    passed = 1 - process.time_of((rank + 0.5) / where.sum(1, keepdim=True).clamp(min=1).double())
    steps = torch.as_tensor(steps, device=where.device).view(-1, 1)
    return (passed * steps).long().clamp(max=steps - 1)
