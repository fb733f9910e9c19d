"""Networks that estimate the density ratio between student and teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from students.adapters import AdaptedDenoiser, AdapterConfig
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.families import Checkpoint


class SpectralLinear(nn.Linear):
    """A linear layer divided by its largest singular value (Miyato et al. 1802.05957), estimated by power iteration.

    torch's own parametrization iterates in every training pass, which makes a loss depend on how often it was computed,
    and does not mix the float32 estimate with bfloat16 weights. Here only the first pass after `refresh`
    iterates, once, however often the loss is computed, or computed again in the backward pass.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.register_buffer("direction", functional.normalize(torch.randn(inputs), dim=0))
        self.stale = False
        for _ in range(15):
            self._iterate()

    def refresh(self) -> None:
        """Let the next pass make one power iteration. Not here: under ZeRO 3 there is no weight outside a pass."""
        self.stale = True

    @torch.no_grad()
    def _iterate(self) -> None:
        weight = self.weight.float()
        self.direction = functional.normalize(weight.T @ (weight @ self.direction), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply weight/σ and the bias; the gradient flows through σ, not through its direction."""
        if self.stale:
            self._iterate()
            self.stale = False
        sigma = (self.weight.float() @ self.direction).norm()
        return functional.linear(x, (self.weight.float() / sigma).to(x), self.bias)


class Discriminator(nn.Module):
    """The teacher's backbone, a copy or adapted, with one logit a token: real (positive) or the student's (negative).

    Head as published for DiDi-Instruct (2509.25035): SpectralNorm-Linear(h, h) → SiLU → SpectralNorm-Linear(h, 1).

    Args:
        start: copied, or the base of an adapter; the teacher, if it is a network.
        trainable_blocks: how many of the last transformer blocks train with the head; the rest stays frozen.
        adapter: trains with the head instead of any block.
    """

    def __init__(self, start: Denoiser, trainable_blocks: int, adapter: AdapterConfig | None = None):
        super().__init__()
        self.backbone = auxiliary_denoiser(start, adapter)
        if adapter is None:
            self.backbone.requires_grad_(False)
            for block in self.backbone.blocks()[-trainable_blocks:]:
                block.requires_grad_(True)
        blank = Canvas.blank(1, 1, start.spec.mask_id, start.device)
        width = self.backbone.hidden_states(blank).shape[-1]
        head = nn.Sequential(SpectralLinear(width, width), nn.SiLU(), SpectralLinear(width, 1))
        self.head: nn.Module = head.to(start.device)
        self.eval()

    @classmethod
    def of(cls, backbone: Denoiser, head: nn.Module) -> Discriminator:
        """One that is trained already, of its parts.

        Args:
            head: (B, L, H) of `Denoiser.hidden_states` → (B, L, 1).
        """
        critic = cls.__new__(cls)
        nn.Module.__init__(critic)
        critic.backbone, critic.head = backbone, head
        return critic.requires_grad_(False).eval()

    def forward(self, canvas: Canvas) -> Tensor:
        """(B, L) float32 logits for the tokens behind a canvas."""
        return self._logits(self.backbone.hidden_states(canvas))

    def read_embeddings(self, canvas: Canvas, embeddings: Tensor) -> Tensor:
        """(B, L) float32 logits, as of `forward`, differentiable in what is read for each token.

        Args:
            embeddings: (B, L, E) rows of `Denoiser.token_embeddings`, or mixtures of them, in place of the tokens.
        """
        return self._logits(self.backbone.hidden_states(canvas, embeddings))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).squeeze(-1).float()

    def refresh(self) -> None:
        """Renew the spectral norms: once an update, so that a loss is the same however often it is computed."""
        for layer in self.head.children():
            if isinstance(layer, SpectralLinear):
                layer.refresh()


def auxiliary_denoiser(start: Denoiser, adapter: AdapterConfig | None = None) -> Denoiser:
    """A network that starts as the teacher and will learn the student's conditionals from its samples (2503.15457).

    Args:
        start: what it starts as.
        adapter: what trains, on ``start`` itself; None to train a copy of it.
    """
    return trainable_copy(start) if adapter is None else AdaptedDenoiser(start, adapter)


def released_discriminator(checkpoint: Checkpoint, **options: Any) -> Discriminator | None:
    """The discriminator that was released with a model, in float32; None where none was.

    Args:
        options: as the model's own were, see `Checkpoint.load`.

    Raises:
        UserError: it is not whole.
    """
    given = {key: value for key, value in options.items() if value is not None}
    parts = checkpoint.family.discriminator(checkpoint, **given)
    return None if parts is None else Discriminator.of(*parts)
