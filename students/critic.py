"""Networks that estimate the density ratio between student and teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from students.student import trainable_copy
from teachers.denoiser import Denoiser


class Discriminator(nn.Module):
    """A copy of the teacher's backbone with one logit a token: real (positive) or the student's (negative).

    Head as published for DiDi-Instruct (2509.25035): SpectralNorm-Linear(h, h) → SiLU → SpectralNorm-Linear(h, 1).

    Args:
        teacher: copied.
        trainable_blocks: how many of the last transformer blocks train with the head; the rest stays frozen.
    """

    def __init__(self, teacher: Denoiser, trainable_blocks: int):
        super().__init__()
        self.backbone = trainable_copy(teacher).requires_grad_(False)
        for block in self.backbone.blocks()[-trainable_blocks:]:
            block.requires_grad_(True)
        width = self.backbone.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=teacher.device)).shape[-1]
        layers = [spectral_norm(nn.Linear(width, width)), nn.SiLU(), spectral_norm(nn.Linear(width, 1))]
        self.head = nn.Sequential(*layers).to(teacher.device)
        self.eval()

    def forward(self, z: Tensor) -> Tensor:
        """(B, L) float32 logits for the tokens behind a partly masked canvas."""
        hidden = self.backbone.hidden_states(z)
        return self.head(hidden).squeeze(-1).float()

    @torch.no_grad()
    def refresh(self) -> None:
        """One power iteration of the spectral norms. Once an update, not once a pass, so losses stay deterministic."""
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                layer.train()
                _ = layer.weight
                layer.eval()


def auxiliary_denoiser(teacher: Denoiser) -> Denoiser:
    """A copy of the teacher that will learn the student's conditionals from the student's samples (2503.15457)."""
    return trainable_copy(teacher)
