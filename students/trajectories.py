"""The order in which a denoiser unmasks a row when it commits its most confident tokens first.

d3LLM (2601.07568) and T3D (2602.12262) train on the states that a teacher passes through when it decodes by confidence;
constrained-order training (Seed Diffusion, 2508.02193) on those of the best of several orders. Tokens may be drawn, or
given: then only the order is the denoiser's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from students.fill import Pass, fill
from students.samplers.sampler import Sampler
from students.samplers.stepwise import Prediction
from students.samplers.top_k import TopK
from students.samplers.work import LOG_LINEAR
from teachers.canvas import Canvas
from teachers.chunks import row_sums
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, uniform_at


@dataclass
class RecordedOrder:
    """How B canvases were filled.

    Attributes:
        tokens: (B, L) without masks.
        order: (B, L) the pass, from 0, that unmasked each position; −1 where nothing was open.
        elbo: (B,) Σ log p(token | canvas before its pass), in nats: a lower bound on log p(tokens).
    """

    tokens: Tensor
    order: Tensor
    elbo: Tensor


CONFIDENCE = TopK()


class NoisyTopK(TopK):
    """Positions are chosen at random, in proportion to their tokens' probability: Gumbel noise on its logarithm."""

    def scores(self, prediction: Prediction) -> Tensor:
        """See `TopK.scores`."""
        real = prediction.canvas.real
        uniforms = uniform_at(prediction.randomness, prediction.candidates, len(prediction.confidence), real)
        return prediction.confidence.double() - (-uniforms.clamp(min=1e-300).log()).log()


def record_order(
    denoiser: Denoiser,
    canvas: Canvas,
    steps: int,
    randomness: Randomness,
    process: MaskedProcess = LOG_LINEAR,
    given: Tensor | None = None,
    sampler: Sampler = CONFIDENCE,
) -> RecordedOrder:
    """Fill a canvas, and record what each pass unmasked.

    Args:
        steps: passes; a row takes no more than it has open positions.
        given: (B, L) tokens to reveal; None draws them exactly.
    """
    order = torch.full_like(canvas.tokens, -1)
    elbo = torch.zeros(len(canvas), dtype=torch.float64, device=canvas.device)

    def record(one: Pass) -> None:
        rows, commit = one.asked.rows, one.commit
        order[rows] = torch.where(commit, one.number, order[rows])
        elbo[rows] += row_sums(one.drawn.log_prob[commit[one.asked.positions]].double(), commit)

    filled = fill(denoiser, canvas, sampler, steps, randomness, process=process, given=given, record=record)
    return RecordedOrder(filled.tokens, order, elbo)


def best_order(
    denoiser: Denoiser,
    canvas: Canvas,
    steps: int,
    randomness: Randomness,
    process: MaskedProcess = LOG_LINEAR,
    candidates: int = 1,
    given: Tensor | None = None,
    block_length: int | None = None,
) -> RecordedOrder:
    """Of several orders of the same tokens, each row's of the largest ELBO (Seed Diffusion, 2508.02193).

    The first candidate is the confidence order, in which the tokens are drawn if they are not given; the others are
    noisy ones of the same tokens [open]: choosing among orders leaves the law of the texts as it is.

    Args:
        block_length: of the blocks that are written one after the other, as of a sampler.
    """
    confident, noisy = TopK(block_length=block_length), NoisyTopK(block_length=block_length)
    best = record_order(denoiser, canvas, steps, randomness, process, given, confident)
    for _ in range(candidates - 1):
        other = record_order(denoiser, canvas, steps, randomness, process, best.tokens, noisy)
        better = other.elbo > best.elbo
        best.order = torch.where(better[:, None], other.order, best.order)
        best.elbo = torch.where(better, other.elbo, best.elbo)
    return best
