"""Trajectory self-distillation with direct discriminative optimisation (T3D, 2602.12262).

The student's likelihood ratio to a frozen reference is trained as a discriminator between the teacher's tokens x₀ and
the reference's own one-pass guess x̃ at the same masked positions of a state z on the teacher's trajectory:

  L = −log σ(β Δ(x₀)) − α log(1 − σ(β Δ(x̃))) + λ · path,   Δ(x) = mean_masked [ log p_ν(xᵢ | z) − log p_ref(xᵢ | z) ],

path being the cross-entropy of x₀ with the tokens that the teacher unmasked first weighing most. With x̃ drawn from
the reference, α = β = 1 and one masked position, the minimum is p_ν = the law of x₀; β < 1 sharpens the ratio, which
is what makes it seek modes. The reference is the student's own average at the start of each of a few rounds.

What the released code gets wrong: it hides the tokens that the teacher unmasked *first* and shows those that it
unmasked last, which is no state of any trajectory (only at ratio 1 does it not matter); and a round, documented in
epochs, is counted in updates. Here the last are hidden, and rounds divide the run. Its canvases also show random
tokens in place of a tenth of the masks, which no sampler does; ours do not. It attends block by block (SDAR, blocks of
8); here the row is one block, which is what teachers with full attention see. The path loss is taken at masked
positions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from objectives.certainty import hidden_canvas, row_means
from objectives.elbo import cross_entropy
from objectives.objective import (
    Distillation,
    LossOutput,
    Objective,
    ObjectiveConfig,
    Rollout,
    labels_of,
    order_of,
    rows_to_write,
)
from objectives.tail import weighted
from objectives.trajectory import last_unmasked, unmasking_rank
from students.student import twin
from teachers.canvas import Batch, Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser
from teachers.positions import at
from teachers.randomness import RowStreams, categorical, uniform


class T3DConfig(ObjectiveConfig):
    """Every default with its origin. Published beside them: all weights, lr 1e-5, weight decay 0.01, 30 epochs [code].

    Attributes:
        alpha: weight of the reference's tokens. beta: slope of the ratio.
        ratios: shares of masks that a row may be shown with. exponent: each is drawn in proportion to its power.
        guess: the reference's tokens: "greedy", its most probable ones, or "drawn".
        path_weight: λ. path_tokens: tokens that enter the path loss at each of its levels.
        rounds: how often the reference is set, the start included.
    """

    name: Literal["t3d"] = "t3d"
    alpha: float = Field(default=0.5, ge=0)  # [code]
    beta: float = Field(default=0.1, gt=0)  # [code]
    ratios: list[float] = Field(default=[1.0, 0.75, 0.5, 0.25], min_length=1)  # [code]
    exponent: float = Field(default=8.0, ge=0)  # [code]
    guess: Literal["greedy", "drawn"] = "greedy"  # [code]
    path_weight: float = Field(default=0.2, ge=0)  # [code]
    path_tokens: PositiveInt = 4  # [code]
    rounds: PositiveInt = 3  # [code]: 30 epochs, 10 a round

    @field_validator("ratios")
    @classmethod
    def _ratios(cls, ratios: list[float]) -> list[float]:
        if not all(0 < ratio <= 1 for ratio in ratios):
            raise ValueError(f"ratios is {ratios}; give shares of masks above 0 and up to 1")
        return ratios

    def build(self, distillation: Distillation) -> T3D:
        """See `ObjectiveConfig.build`."""
        return T3D(self, distillation)


@dataclass
class T3DRollout(Rollout):
    """States of the teacher's trajectories.

    Attributes:
        labels: (B, L) the teacher's tokens. guess: (B, L) the reference's at masked positions.
        state: labels with masks. theirs: (B, L, H) the reference's features at these masks, 0 elsewhere.
        path: (B, L) weights of the path loss, of sum 1 in each row.
    """

    labels: Tensor
    guess: Tensor
    state: Canvas
    theirs: Tensor
    path: Tensor


def ddo(real: Tensor, fake: Tensor, alpha: float, beta: float) -> Tensor:
    """−log σ(β real) − α log(1 − σ(β fake)) of log-ratios to the reference, elementwise."""
    return -logsigmoid(beta * real) - alpha * logsigmoid(-beta * fake)


def path_weights(rank: Tensor, masked: Tensor, tokens: int) -> Tensor:
    """How much each masked position counts in the path loss.

    Level s of ⌈n/k⌉ averages over the first min((s+1)k, n) tokens that the teacher unmasked, and the loss over levels.

    Args:
        rank: (B, L) 0 … n−1 at a row's n masked positions, in the order of unmasking. tokens: k.

    Returns:
        (B, L) float64, of sum 1 in each row, zero where nothing is masked.
    """
    size = masked.sum(1, keepdim=True)
    levels = torch.arange(-(-masked.shape[1] // tokens), device=rank.device)
    reached = torch.minimum((levels + 1) * tokens, size)  # (B, S) tokens at each level
    used = levels * tokens < size
    each = torch.where(used, 1 / reached.clamp(min=1).double(), 0.0) / used.sum(1, keepdim=True).clamp(min=1)
    later = each.flip(1).cumsum(1).flip(1)  # a token enters at its level and stays
    level = (rank // tokens).clamp(max=levels.numel() - 1)
    return later.gather(1, level).masked_fill(~masked, 0.0)


def round_starts(updates: int, rounds: int) -> set[int]:
    """The updates, but the first, at which a round starts."""
    return {updates * r // rounds for r in range(1, rounds)}


class T3D(Objective[T3DRollout]):
    """Discrimination against the student's own past, on the teacher's trajectories."""

    needs = "trajectories"
    asks = ("target",)

    def __init__(self, config: T3DConfig, distillation: Distillation):
        self.config, self.student, self.process = config, distillation.student, distillation.process
        self.tail = distillation.tail
        self.target = twin(self.student)

    def begin(self, update: int, updates: int) -> bool:
        """The reference becomes the averaged student when a round starts; in the first it is the student's start."""
        return update in round_starts(updates, self.config.rounds)

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> T3DRollout:
        """A state of each row's trajectory, and the reference's guess from there."""
        canvas, labels, rows = batch.canvas, labels_of(batch), len(batch)
        # 1. a share of masks, in proportion to its power
        weights = list(itertools.accumulate(ratio**self.config.exponent for ratio in self.config.ratios))
        draws = uniform(randomness, rows, 1)[:, 0]
        edges = torch.tensor(weights, dtype=torch.float64, device=draws.device) / weights[-1]
        ratio = draws.new_tensor(self.config.ratios)[torch.searchsorted(edges, draws, right=True)]
        # 2. what the teacher unmasked last is hidden
        ties = uniform(randomness, rows, canvas.length)
        order = order_of(batch)
        masked = last_unmasked(order, canvas.open, ratio, ties)
        state = hidden_canvas(labels, canvas, masked, self.student.spec.mask_id, self.process)
        # 3. the reference's tokens there, and what each position counts in the path loss
        theirs = self.reference_network.features(state, masked)
        guess = self._guess(theirs, uniform(randomness, rows, canvas.length)[masked], masked.numel())
        path = path_weights(unmasking_rank(order, masked, ties), masked, self.config.path_tokens)
        weights = self.tail.weights(labels, canvas.open)
        labelled = labels.masked_scatter(masked, guess)
        return T3DRollout(labels, labelled, state, scatter(theirs, masked), path, weights=weights)

    def _guess(self, features: Tensor, uniforms: Tensor, positions: int) -> Tensor:
        """(N,) the reference's tokens where it has these (N, H) features, drawn by (N,) uniforms if it is not greedy.

        Args:
            positions: of the whole canvas, B · L.
        """
        target, greedy = self.reference_network, self.config.guess == "greedy"

        def tokens_of(features: Tensor, uniforms: Tensor) -> tuple[Tensor]:
            log_probs = target.head(features)
            return (log_probs.argmax(-1) if greedy else categorical(log_probs, uniforms),)

        chunks = chunk_count(positions, self.student.spec.vocabulary)
        (tokens,) = in_chunks(tokens_of, chunks, features, uniforms)
        return tokens

    @property
    def reference_network(self) -> Denoiser:
        """p_ref: `target`, which starts as the student does."""
        assert self.target is not None
        return self.target

    def outline(self, canvas: Canvas) -> T3DRollout:
        """See `Objective.outline`."""
        with torch.no_grad():
            theirs = self.reference_network.features(canvas)
        return T3DRollout(canvas.tokens, canvas.tokens, canvas, theirs, canvas.open.double())

    def count(self, phase: str, rollout: T3DRollout) -> Tensor:
        """Rows."""
        return rows_to_write(rollout.state)

    def loss(self, phase: str, rollout: T3DRollout) -> LossOutput:
        """Σ over rows of the discriminative loss and λ times the path loss."""
        state, masked, target = rollout.state, rollout.state.open, self.reference_network
        # 1. a pass, and what the rollout's has given: (N, H)
        ours, theirs = self.student.features(state, masked), at(rollout.theirs, masked)

        def at_positions(ours: Tensor, theirs: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            log_probs = self.student.head(ours)
            with torch.no_grad():
                past = target.head(theirs)
            nats = cross_entropy(log_probs, real)
            return nats, cross_entropy(past, real) - nats, cross_entropy(past, fake) - cross_entropy(log_probs, fake)

        # 2. of each position −log p(x₀), and both log-ratios to the reference: (B, L)
        chunks = chunk_count(masked.numel(), self.student.spec.vocabulary)
        values = in_chunks(at_positions, chunks, ours, theirs, rollout.labels[masked], rollout.guess[masked])
        nats, real, fake = (weighted(scatter(value, masked), rollout.weights) for value in values)
        # 3. of each row: (B,)
        real, fake = row_means(real, masked), row_means(fake, masked)
        path = (nats * rollout.path.to(nats)).sum(1)
        terms = ddo(real, fake, self.config.alpha, self.config.beta) + self.config.path_weight * path
        rows = rows_to_write(rollout.state)
        metrics = {"real_ratio": real, "guess_ratio": fake, "path_nats": path}
        return LossOutput(
            terms[masked.any(1)].sum(), {name: (value.detach().sum(), rows) for name, value in metrics.items()}
        )
