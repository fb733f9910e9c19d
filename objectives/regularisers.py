"""What keeps a student near its teacher and its text diverse, beside the divergence that it minimises."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from objectives.divergences import entropy, jeffreys, kl
from teachers.section import Section


class Regularisers(Section):
    """Terms of each masked position of the student's states, averaged over a row's.

    Attributes:
        teacher_weight: of the divergence to the teacher.
        teacher_divergence: KL(teacher ‖ student), or Jeffreys' with β = 0.5.
        entropy_bonus: weight of the student's entropy.
    """

    teacher_weight: float = Field(default=0.0, ge=0)
    teacher_divergence: Literal["kl", "jeffreys"] = "kl"
    entropy_bonus: float = Field(default=0.0, ge=0)

    def at(self, log_probs: Tensor, log_teacher: Tensor | None) -> tuple[Tensor, Tensor]:
        """Divergence to the teacher minus the entropy bonus; and the entropy, detached: (N,) each, nats.

        Args:
            log_probs: (N, V), differentiable. log_teacher: (N, V), a constant; None to leave the divergence out.
        """
        with torch.set_grad_enabled(self.entropy_bonus > 0 and torch.is_grad_enabled()):
            entropies = entropy(log_probs)
        terms = -self.entropy_bonus * entropies
        if log_teacher is not None:
            divergence = jeffreys if self.teacher_divergence == "jeffreys" else kl
            terms = terms + self.teacher_weight * divergence(log_teacher, log_probs)
        return terms, entropies.detach()
