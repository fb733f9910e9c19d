"""Reveal positions that lie far apart in the same pass: dilated scheduling (Luxembourg et al. 2506.19037).

What a pass reveals is drawn independently, and neighbours depend on each other most. So each pass takes positions as
far from each other, and from what is known, as they can be: in the order of the bit-reversed position (van der Corput's
sequence: 0, ½, ¼, ¾, … of the row), rotated at random, in ``steps`` passes of equal size. The order looks at no token,
so that one position a pass gives the denoiser's own law, as in any order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from students.samplers.planned import PlannedSampler
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform


class Dilated(PlannedSampler):
    """A row takes exactly ``steps`` passes, or as many as it has open positions."""

    name: Literal["dilated"] = "dilated"

    def transitions(self, canvas: Canvas, steps: Tensor, process: MaskedProcess, randomness: Randomness) -> Tensor:
        """Random by a rotation alone: after transition k a part α(1 − (k+1)/steps) of a row's positions is unmasked.

        See `PlannedSampler.transitions`.
        """
        rows, length = canvas.open.shape
        bits = max(1, (length - 1).bit_length())
        # 1. each token's place in its text, rotated within the smallest power of two that holds the text
        period = _period(canvas, bits)
        place = canvas.position_ids()
        place = torch.arange(length, device=canvas.device) if place is None else place
        turned = (place + (uniform(randomness, rows, 1) * period).long()) % period
        # 2. with its bits reversed it is a rank
        key = torch.zeros_like(turned)
        for bit in range(bits):
            key += ((turned >> bit) & 1) << (bits - 1 - bit)
        rank = key.masked_fill(~canvas.open, 2**bits).argsort(1).argsort(1)
        # 3. the middle of a rank's share of the row, so that none falls on a boundary
        share = (rank + 0.5) / canvas.open.sum(1, keepdim=True).clamp(min=1).double()
        passed = 1 - process.time_of(share)
        return (passed * steps[:, None]).long().clamp(max=steps[:, None] - 1)


def _period(canvas: Canvas, bits: int) -> int | Tensor:
    """The smallest power of two, from 2 to 2^bits, that each row's real tokens fit in: (B, 1), or one for all."""
    if canvas.real is None:
        return 2**bits
    powers = 2 ** torch.arange(1, bits + 1, device=canvas.device)
    return powers[(powers < canvas.real.sum(1, keepdim=True)).sum(1, keepdim=True).clamp(max=bits - 1)]
