"""Certainty-forcing distillation (dParallel, Chen et al. 2509.26488): follow the teacher's texts, and be sure sooner.

  L = E_{x₀ ~ teacher, canvases} [ mean_masked −log p(x₀ᵢ | z) + β · mean_correct H(softmax(logits / T)) ],

summed over two canvases of each row: a block in which half the tokens are masked, and its complement; before the block
everything is shown, after it everything is masked and not scored, as in semi-autoregressive decoding.

Canvases of our own beside these, ``canvases: sampler``: what the run's sampler has still masked before one of its
passes, when it writes the row's tokens. They are what the student meets when it writes, and the first of them shows
nothing of the row; half-masked rows leave what a first pass writes to chance.

What the released code gets wrong: its masking loop writes each row's block into *all* rows and forgets what it masked
after the blocks of earlier rows, so it is right at batch size 1 only; where the blocks divide the row evenly, one draw
in (blocks + 1) has an empty block and no loss; and both means run over the batch, so that accumulating gradients
changes the loss. Here every row has its own block, which is never empty, and means are over a row's positions: the
released loss at batch size 1, at any batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from objectives.divergences import entropy
from objectives.elbo import cross_entropy
from objectives.objective import (
    Distillation,
    LossOutput,
    Objective,
    ObjectiveConfig,
    Rollout,
    Surroundings,
    labels_of,
    rows_to_write,
    timed,
)
from objectives.tail import balanced, weighted
from students.rollout import on_the_way
from teachers.canvas import Batch, Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


class CertaintyConfig(ObjectiveConfig):
    """Every default with its origin. Published beside them: a LoRA adapter of rank 128, lr 2e-5, 6 epochs [code].

    Attributes:
        canvases: "random": a block of each row, masked at random, and the complement. "sampler": what the run's sampler
            has still masked before one of its passes, when it writes the row's tokens in the order that the student
            gives. [own]
        steps: the step counts of that sampler that are drawn from.
        block: tokens of a random block.
        mask: probability that a token of the block is masked on the first canvas; on the second the others are.
        entropy_weight: β.
        temperature: T.
    """

    name: Literal["certainty"] = "certainty"
    canvases: Literal["random", "sampler"] = "random"  # [code]
    steps: list[PositiveInt] = Field(default=[4, 8], min_length=1)  # [own]
    block: PositiveInt = 32  # [code]
    mask: float = Field(default=0.5, gt=0, lt=1)  # [code]
    entropy_weight: float = Field(default=2.0, ge=0)  # [code]
    temperature: float = Field(default=0.5, gt=0)  # [code]

    @property
    def most_steps(self) -> int:
        """Of ``steps``, where these are asked for."""
        return max(self.steps) if self.canvases == "sampler" else 1

    @property
    def fewest_steps(self) -> int | None:
        """Of ``steps``, where these are asked for."""
        return min(self.steps) if self.canvases == "sampler" else None

    def check(self, run: Surroundings) -> None:
        """Canvases of the run's sampler need one that a rollout can be made with."""
        super().check(run)
        if self.canvases == "sampler" and run.sampler.needs_critic:
            raise ValueError(
                f"objective.canvases is sampler, and sampler {run.sampler.label!r} cannot make training rollouts; set "
                "canvases to random, or another sampler"
            )

    def build(self, distillation: Distillation) -> Certainty:
        """See `ObjectiveConfig.build`."""
        return Certainty(self, distillation)


@dataclass
class CanvasRollout(Rollout):
    """Rows and what is hidden of them.

    Attributes:
        canvas: what of the rows is open.
        labels: (B, L) clean tokens.
        hidden: (B, C, L) what each of C canvases hides. scored: (B, C, L) where labels are to be predicted.
    """

    canvas: Canvas
    labels: Tensor
    hidden: Tensor
    scored: Tensor


def place_in_text(open_: Tensor) -> Tensor:
    """(B, L) the number of each open position among its row's, from 0; −1 elsewhere."""
    return (open_.long().cumsum(1) - 1).masked_fill(~open_, -1)


def after_block(open_: Tensor, end: Tensor) -> Tensor:
    """(B, L) the open positions from each row's ``end`` (B,) on, counted among its open ones."""
    return place_in_text(open_) >= end[:, None]


def in_block(open_: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(B, L) the open positions from ``start`` to before ``end`` (B,), counted among a row's open ones."""
    place = place_in_text(open_)
    return (place >= start[:, None]) & (place < end[:, None])


def draw_block(open_: Tensor, block: int, uniforms: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One of each row's blocks of so many open positions, by its uniform (B,): (start, end), (B,) each.

    All have the same chance; or, with weights, that of a position in it, drawn in proportion to what it counts. A block
    is empty only where nothing is open.

    Args:
        weights: (B, L), 0 where not open; None where all count alike.
    """
    tokens = open_.sum(1)
    if weights is None:
        start = (uniforms * -(-tokens // block)).long() * block
    else:
        mass = weights.double().cumsum(1)
        passed = mass <= uniforms[:, None] * mass[:, -1:]
        start = (passed & open_).sum(1).clamp(max=tokens - 1).clamp(min=0) // block * block
    return start, torch.minimum(start + block, tokens)


def within(weights: Tensor | None, block: Tensor) -> Tensor | None:
    """What positions count once a block (B, L) was drawn by what it counts in all."""
    return None if weights is None else balanced(weights, block)


def tempered_entropy(log_probs: Tensor, temperature: float) -> Tensor:
    """H(softmax(log p / T)), in nats: (N, V) → (N,)."""
    return entropy((log_probs / temperature).log_softmax(-1))


def row_means(values: Tensor, where: Tensor) -> Tensor:
    """Mean over each row's True positions, 0 where it has none: (B, L), (B, L) → (B,)."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)


def certainty_terms(
    student: Denoiser, canvas: Canvas, scored: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and tempered entropy at the scored positions of a canvas (B, L), zero elsewhere.

    Returns:
        (B, L) −log p(label); (B, L) H; (B, L) whether the label is the most probable token. The last is a constant.
    """
    features = student.features(canvas, scored)

    def at_positions(features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = student.head(features)
        return (
            cross_entropy(log_probs, tokens),
            tempered_entropy(log_probs, temperature),
            log_probs.argmax(-1) == tokens,
        )

    chunks = chunk_count(scored.numel(), student.spec.vocabulary)
    nats, entropies, correct = in_chunks(at_positions, chunks, features, labels[scored])
    return scatter(nats, scored), scatter(entropies, scored), scatter(correct, scored)


def hidden_canvas(labels: Tensor, canvas: Canvas, hidden: Tensor, mask_id: int, process: MaskedProcess) -> Canvas:
    """The labels (B, L) with masks where (B, L) ``hidden``, at the time at which so much is masked."""
    tokens = torch.where(hidden, mask_id, labels)
    return timed(replace(canvas, tokens=tokens, open=hidden), process)


class CertaintyObjective(Objective[CanvasRollout]):
    """The loss of certainty forcing, on canvases that a subclass draws."""

    asks = ()

    def __init__(self, distillation: Distillation, entropy_weight: float, temperature: float):
        self.student, self.process, self.tail = distillation.student, distillation.process, distillation.tail
        self.entropy_weight, self.temperature = entropy_weight, temperature

    def outline(self, canvas: Canvas) -> CanvasRollout:
        """See `Objective.outline`."""
        everything = canvas.open[:, None].repeat(1, 2, 1)
        return CanvasRollout(canvas, canvas.tokens, everything, everything)

    def count(self, phase: str, rollout: CanvasRollout) -> Tensor:
        """Rows: means are over the positions of a row, so that it does not matter which rows come with it."""
        return rows_to_write(rollout.canvas)

    def loss(self, phase: str, rollout: CanvasRollout) -> LossOutput:
        """Σ over rows and canvases of the mean cross-entropy and β times the mean entropy where it is right."""
        labels, mask_id = rollout.labels, self.student.spec.mask_id
        total = torch.zeros((), device=labels.device)
        sums = torch.zeros(4, dtype=torch.float64, device=labels.device)  # nats, entropy, correct, scored
        for hidden, scored in zip(rollout.hidden.unbind(1), rollout.scored.unbind(1), strict=True):
            canvas = hidden_canvas(labels, rollout.canvas, hidden, mask_id, self.process)
            *terms, correct = certainty_terms(self.student, canvas, scored, labels, self.temperature)
            nats, entropies = (weighted(term, rollout.weights) for term in terms)
            total = total + (row_means(nats, scored) + self.entropy_weight * row_means(entropies, correct)).sum()
            sums += torch.stack([x.detach().double().sum() for x in (nats, entropies * correct, correct, scored)])
        return LossOutput(
            total,
            {
                "masked_nats": (sums[0], sums[3]),
                "correct": (sums[2], sums[3]),
                "entropy_where_correct": (sums[1], sums[2]),
            },
        )


class Certainty(CertaintyObjective):
    """dParallel: blocks masked at random, and their complements."""

    needs = "rows"

    def __init__(self, config: CertaintyConfig, distillation: Distillation):
        super().__init__(distillation, config.entropy_weight, config.temperature)
        self.config, self.sampler = config, distillation.sampler

    def rollout(self, batch: Batch, randomness: RowStreams) -> CanvasRollout:
        """See `CertaintyConfig.canvases`."""
        draw = self._sampled if self.config.canvases == "sampler" else self._random
        return draw(batch, randomness)

    def _sampled(self, batch: Batch, randomness: RowStreams) -> CanvasRollout:
        """A state of the student's sampler that holds tokens of the row."""
        canvas, labels, steps = batch.canvas, labels_of(batch), self.config.steps
        state = on_the_way(self.student, self.process, canvas, self.sampler, steps, labels, randomness)
        hidden = state.open[:, None]
        weights = within(self.tail.weights(labels, canvas.open), state.open)
        return CanvasRollout(canvas, labels, hidden, hidden, weights=weights)

    def _random(self, batch: Batch, randomness: RowStreams) -> CanvasRollout:
        """A block of each row, masked at random, and the complement."""
        open_, labels = batch.canvas.open, labels_of(batch)
        weights = self.tail.weights(labels, open_)
        # 1. a block, counted among the open positions, so that a prompt shifts none
        start, end = draw_block(open_, self.config.block, uniform(randomness, len(batch), 1)[:, 0], weights)
        block = in_block(open_, start, end)
        # 2. what is masked of it, and the complement
        masked = uniform(randomness, *open_.shape) < self.config.mask
        scored = torch.stack([block & masked, block & ~masked], 1)
        # 3. everything after it is hidden too, and not scored
        hidden = scored | after_block(open_, end)[:, None]
        return CanvasRollout(batch.canvas, labels, hidden, scored, weights=within(weights, block))
