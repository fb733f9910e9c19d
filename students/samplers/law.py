"""The exact law of ancestral sampling, where it can be computed: for measuring a sampler without any samples.

Which transition reveals which position does not depend on what the network says. Given that, the probability of a row
is a product over the network's own conditionals; without it, a mixture over all ways to reveal.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from students.samplers.ancestral import number_events
from students.samplers.sampler import LOG_LINEAR
from teachers.chunks import row_sums
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess


@torch.no_grad()
def ancestral_log_prob(denoiser: Denoiser, tokens: Tensor, transition: Tensor, steps: int) -> Tensor:
    """log q(x | which transition reveals what): (B,) float64 nats, of rows sampled from an all-masked canvas.

    Args:
        tokens: (B, L) clean rows.
        transition: (B, L) in [0, ``steps``), as `students.samplers.ancestral.reveal_transitions` draws it.
    """
    mask_id = denoiser.spec.mask_id
    event, events = number_events(transition, torch.ones_like(tokens, dtype=torch.bool))
    total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for n in range(int(events.max())):
        rows = (events > n).nonzero().squeeze(1)
        here = event[rows]
        reveal, z = here == n, torch.where(here < n, tokens[rows], mask_id)
        t = 1 - transition[rows].masked_fill(~reveal, 0).amax(1).double() / steps
        log_probs = denoiser.logits(z, t.float() if denoiser.spec.time_conditioned else None, select=reveal).double()
        drawn = log_probs.gather(-1, tokens[rows][reveal][:, None]).squeeze(-1)
        total[rows] += row_sums(drawn.double(), reveal)
    return total


@torch.no_grad()
def ancestral_law(denoiser: Denoiser, rows: Tensor, steps: int, process: MaskedProcess = LOG_LINEAR) -> Tensor:
    """The probability that ancestral sampling from an all-masked canvas writes each row: (N,) float64.

    All ``steps``^L ways to reveal are enumerated: for rows of a few tokens.

    Args:
        rows: (N, L), such as `MarkovDenoiser.all_rows` gives, whose order `MarkovDenoiser.kl` expects.
    """
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    chance = process.alpha(times).diff().tolist()
    law = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for pattern in itertools.product(range(steps), repeat=rows.shape[1]):
        transition = torch.tensor(pattern, device=rows.device).expand_as(rows)
        weight = torch.tensor([chance[k] for k in pattern], dtype=torch.float64).prod()
        law += weight.to(law) * ancestral_log_prob(denoiser, rows, transition, steps).exp()
    return law
