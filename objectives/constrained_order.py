"""Constrained-order training (Seed Diffusion, 2508.02193).

Of several trajectories for each row the one of the largest ELBO under the teacher is kept, and the student learns the
row from the states of that trajectory alone:

  L_c = E_{τ ~ U(T), (xᵢ, x₀) ∈ τ} [ −λ(xᵢ) log p_ν(x₀ | xᵢ) ].

The paper leaves open how candidates are made, how many there are, and λ. Ours: the teacher's confidence order and noisy
variants of it, of the *same* tokens (students/trajectories.py), so that what is filtered is orders and not texts; and
λ = 1/(share of masks), the ELBO's weight for log-linear noise, or 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from objectives.certainty import CanvasRollout, hidden_canvas, row_means
from objectives.elbo import masked_cross_entropy
from objectives.objective import (
    Distillation,
    LossOutput,
    Objective,
    ObjectiveConfig,
    labels_of,
    order_of,
    rows_to_write,
)
from objectives.tail import weighted
from teachers.canvas import Batch, Canvas
from teachers.randomness import RowStreams, uniform


class ConstrainedOrderConfig(ObjectiveConfig):
    """Every default with its origin.

    Attributes:
        candidates: trajectories tried for each row; 1 keeps the teacher's confidence order.
        weight: λ: "elbo", 1/(share of masks), or "uniform".
    """

    name: Literal["constrained_order"] = "constrained_order"
    candidates: PositiveInt = 4  # [open]
    weight: Literal["elbo", "uniform"] = "elbo"  # [open]

    def build(self, distillation: Distillation) -> ConstrainedOrder:
        """See `ObjectiveConfig.build`."""
        return ConstrainedOrder(self, distillation)


def state_before(order: Tensor, passed: Tensor) -> Tensor:
    """What is masked before pass ``passed`` (B,) of trajectories (B, L): (B, L) bool."""
    return order >= passed[:, None]


class ConstrainedOrder(Objective[CanvasRollout]):
    """The states of the best trajectories."""

    needs = "trajectories"
    asks = ()

    def __init__(self, config: ConstrainedOrderConfig, distillation: Distillation):
        self.config, self.candidates = config, config.candidates
        self.student, self.process, self.tail = distillation.student, distillation.process, distillation.tail

    def rollout(self, batch: Batch, randomness: RowStreams) -> CanvasRollout:
        """A state of each row's trajectory, all passes equally likely."""
        open_ = batch.canvas.open
        order = order_of(batch).masked_fill(~open_, -1)
        passes = order.amax(1) + 1
        masked = state_before(order, (uniform(randomness, len(batch), 1)[:, 0] * passes).long())
        masked = (masked & open_)[:, None]
        labels = labels_of(batch)
        return CanvasRollout(batch.canvas, labels, masked, masked, weights=self.tail.weights(labels, open_))

    def outline(self, canvas: Canvas) -> CanvasRollout:
        """See `Objective.outline`."""
        return CanvasRollout(canvas, canvas.tokens, canvas.open[:, None], canvas.open[:, None])

    def count(self, phase: str, rollout: CanvasRollout) -> Tensor:
        """Rows."""
        return rows_to_write(rollout.canvas)

    def loss(self, phase: str, rollout: CanvasRollout) -> LossOutput:
        """Σ over rows of λ times the cross-entropy of a row's masked tokens, per token."""
        masked = rollout.scored[:, 0]
        state = hidden_canvas(rollout.labels, rollout.canvas, masked, self.student.spec.mask_id, self.process)
        nats = weighted(masked_cross_entropy(self.student, state, rollout.labels), rollout.weights)
        terms = row_means(nats, masked if self.config.weight == "elbo" else rollout.canvas.open)
        return LossOutput(terms.sum(), {"masked_nats": (nats.detach().sum(), masked.sum())})
