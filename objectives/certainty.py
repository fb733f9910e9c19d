"""Certainty-forcing distillation (dParallel, Chen et al. 2509.26488): follow the teacher's texts, and be sure sooner.

  L = E_{x₀ ~ teacher, canvases} [ mean_masked −log p(x₀ᵢ | z) + β · mean_correct H(softmax(logits / T)) ],

summed over two canvases of each row: a block in which half the tokens are masked, and its complement; before the block
everything is shown, after it everything is masked and not scored, as in semi-autoregressive decoding.

What the released code gets wrong: its masking loop writes each row's block into *all* rows and forgets what it masked
after the blocks of earlier rows, so it is right at batch size 1 only; where the blocks divide the row evenly, one draw
in (blocks + 1) has an empty block and no loss; and both means run over the batch, so that accumulating gradients
changes the loss. Here every row has its own block, which is never empty, and means are over a row's positions: the
released loss at batch size 1, at any batch size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from objectives.divergences import entropy
from objectives.elbo import cross_entropy
from objectives.objective import Distillation, LossOutput, Objective, ObjectiveConfig, Rollout
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser
from teachers.randomness import RowStreams, uniform


class CertaintyConfig(ObjectiveConfig):
    """Every default with its origin. Published beside them: a LoRA adapter of rank 128, lr 2e-5, 6 epochs [code].

    Attributes:
        block: tokens of a block.
        mask: probability that a token of the block is masked on the first canvas; on the second the others are.
        entropy_weight: β.
        temperature: T.
    """

    phases: ClassVar = ("student",)
    name: Literal["certainty"] = "certainty"  # type: ignore[assignment]
    block: PositiveInt = 32  # [code]
    mask: float = Field(0.5, gt=0, lt=1)  # [code]
    entropy_weight: float = Field(2.0, ge=0)  # [code]
    temperature: float = Field(0.5, gt=0)  # [code]

    def build(self, distillation: Distillation) -> Certainty:
        """See `ObjectiveConfig.build`."""
        return Certainty(self, distillation)


@dataclass
class CanvasRollout(Rollout):
    """Rows and what is hidden of them.

    Attributes:
        labels: (B, L) clean tokens.
        canvases: (B, C, L). scored: (B, C, L) masked positions whose labels are to be predicted.
    """

    labels: Tensor
    canvases: Tensor
    scored: Tensor


def block_canvases(labels: Tensor, scored: Tensor, end: Tensor, mask_id: int) -> Tensor:
    """Canvases that hide the scored positions and everything from each row's ``end`` on.

    Args:
        labels: (B, L). scored: (B, C, L). end: (B,) the first position after the block.

    Returns:
        (B, C, L).
    """
    after = torch.arange(labels.shape[1], device=labels.device) >= end[:, None]
    return torch.where(scored | after[:, None], mask_id, labels[:, None])


def draw_block(length: int, block: int, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One of the ⌈length/block⌉ blocks for each row, by its uniform (B,): (start, end), (B,) each, never empty."""
    start = (uniforms * -(-length // block)).long() * block
    return start, (start + block).clamp(max=length)


def tempered_entropy(log_probs: Tensor, temperature: float) -> Tensor:
    """H(softmax(log p / T)), in nats: (N, V) → (N,)."""
    return entropy((log_probs / temperature).log_softmax(-1))


def row_means(values: Tensor, where: Tensor) -> Tensor:
    """Mean over each row's True positions, 0 where it has none: (B, L), (B, L) → (B,)."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)


def certainty_terms(
    student: Denoiser, z: Tensor, scored: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and tempered entropy at the scored positions of canvases (B, L), zero elsewhere.

    Returns:
        (B, L) −log p(label); (B, L) H; (B, L) whether the label is the most probable token. The last is a constant.
    """
    features = student.features(Canvas.of(z, student.spec.mask_id), scored)

    def at_positions(features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = student.head(features)
        return (
            cross_entropy(log_probs, tokens),
            tempered_entropy(log_probs, temperature),
            log_probs.argmax(-1) == tokens,
        )

    chunks = chunk_count(z.numel(), student.spec.vocabulary)
    nats, entropies, correct = in_chunks(at_positions, chunks, features, labels[scored])
    return scatter(nats, scored), scatter(entropies, scored), scatter(correct, scored)


class CertaintyObjective(Objective):
    """The loss of certainty forcing, on canvases that a subclass draws."""

    phases: ClassVar = ("student",)

    def __init__(self, distillation: Distillation, entropy_weight: float, temperature: float):
        self.student, self.length = distillation.student, distillation.length
        self.entropy_weight, self.temperature = entropy_weight, temperature

    def network(self, phase: str) -> nn.Module:
        """The student."""
        return self.student

    def count(self, phase: str, rollout: CanvasRollout) -> Tensor:  # type: ignore[override]
        """Rows: means are over the positions of a row, so that it does not matter which rows come with it."""
        return torch.tensor(len(rollout))

    def loss(self, phase: str, rollout: CanvasRollout) -> LossOutput:  # type: ignore[override]
        """Σ over rows and canvases of the mean cross-entropy and β times the mean entropy where it is right."""
        total = 0.0
        sums = torch.zeros(4, dtype=torch.float64, device=rollout.labels.device)  # nats, entropy, correct, scored
        for canvas in range(rollout.canvases.shape[1]):
            z, scored = rollout.canvases[:, canvas], rollout.scored[:, canvas]
            nats, entropies, correct = certainty_terms(self.student, z, scored, rollout.labels, self.temperature)
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
        self.config = config

    def rollout(self, real: Tensor | None, rows: int, randomness: RowStreams) -> CanvasRollout:
        """A block of each row, masked at random, and the complement."""
        assert real is not None
        start, end = draw_block(self.length, self.config.block, uniform(randomness, rows, 1)[:, 0])
        position = torch.arange(self.length, device=real.device)
        block = (position >= start[:, None]) & (position < end[:, None])
        masked = uniform(randomness, rows, self.length) < self.config.mask
        scored = torch.stack([block & masked, block & ~masked], 1)
        return CanvasRollout(real, block_canvases(real, scored, end, self.student.spec.mask_id), scored)
