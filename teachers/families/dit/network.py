"""The diffusion transformer that MDLM (2406.07524), SEDD, BD3-LM, DUO, SDTT and DiDi-Instruct share.

A bidirectional transformer with rotary positions, whose norms are modulated by a vector that stands for the noise level
(adaLN, 2212.09748). What the families feed as noise level, how they name their files and what they make of the output
is theirs. Parameters are named as in their checkpoints, so that loading is the removal of a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, noop_context_fn

from teachers.attention import Mask, attention
from teachers.cache import Window
from teachers.denoiser import Contexts
from teachers.families.dit.shape import Shape

Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keeps new keys and values, and gives back all that are to be read."""
FREQUENCIES = 128  # of the noise level's embedding
LONGEST_PERIOD = 10_000.0  # of the noise level's embedding and of the rotary positions
MLP_FACTOR = 4
EPSILON = 1e-5


class TokenEmbedding(nn.Module):
    """A table of token vectors, a bare parameter in the checkpoints."""

    def __init__(self, vocabulary: int, hidden: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(vocabulary, hidden) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) int64 → (…, H)."""
        return functional.embedding(tokens, self.embedding)


class NoiseEmbedding(nn.Module):
    """σ as sines and cosines, then a small MLP."""

    def __init__(self, conditioning: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, conditioning), nn.SiLU(), nn.Linear(conditioning, conditioning)
        )

    def forward(self, sigma: Tensor) -> Tensor:
        """(B,) noise levels → (B, C); at σ = 0 a constant, which is not zero."""
        exponents = torch.arange(FREQUENCIES, device=sigma.device, dtype=torch.float32) / FREQUENCIES
        angles = sigma[:, None].float() * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return functional.silu(self.mlp(waves.to(self.mlp.get_parameter("0.bias").dtype)))


class Rotary(nn.Module):
    """Rotary positions (2104.09864), whose frequencies are part of the checkpoint."""

    inv_freq: Tensor

    def __init__(self, head: int):
        super().__init__()
        self.register_buffer("inv_freq", LONGEST_PERIOD ** -(torch.arange(0, head, 2) / head))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) positions → cosines and sines, (B, 1, L, D) each: channel j turns with channel j + D/2."""
        angles = positions[:, None, :, None].float() * self.inv_freq.float()
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn queries or keys (B, N, L, D) by the angles that `Rotary` gives."""
    first, second = x.chunk(2, -1)
    return (x * cosines + torch.cat([-second, first], -1) * sines).to(x)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, L, H) by (B, 1, H) shift and scale."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Attention and an MLP, each read through a modulated norm and added through a gate."""

    def __init__(self, shape: Shape):
        super().__init__()
        hidden, self.heads = shape.hidden, shape.heads
        self.norm1 = nn.LayerNorm(hidden, eps=EPSILON, bias=False)
        self.attn_qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.attn_out = nn.Linear(hidden, hidden, bias=False)
        self.norm2 = nn.LayerNorm(hidden, eps=EPSILON, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, MLP_FACTOR * hidden), nn.GELU(approximate="tanh"), nn.Linear(MLP_FACTOR * hidden, hidden)
        )
        self.adaLN_modulation = nn.Linear(shape.conditioning, 6 * hidden)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotation: tuple[Tensor, Tensor],
        visible: Mask | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """(B, L, H) → (B, L, H).

        Args:
            condition: (B, C) of `NoiseEmbedding`.
            rotation: of `Rotary`.
            visible: bool that broadcasts to (B, N, L, L), True where a query sees a key, or tiles; None for everywhere.
            keep: given the new keys and values, gives back all that queries read; None for just these.
        """
        # 1. shift, scale and gate of attention, and of the MLP: (B, 1, H) each
        chunks = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = chunks
        # 2. attention
        attended = self._attention(modulate(self.norm1(x), shift, scale), rotation, visible, keep)
        x = x + gate * self.attn_out(attended)
        # 3. MLP
        return x + mlp_gate * self.mlp(modulate(self.norm2(x), mlp_shift, mlp_scale))

    def _attention(self, x: Tensor, rotation: tuple[Tensor, Tensor], visible: Mask | None, keep: Keep | None) -> Tensor:
        heads = self.attn_qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, N, D)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # (B, N, L, D) each
        keys = rotate(keys, *rotation)
        if keep is not None:
            keys, values = keep(keys, values)
        mixed = attention(rotate(queries, *rotation), keys, values, visible)
        return mixed.transpose(1, 2).flatten(2)


class OutputLayer(nn.Module):
    """The last modulated norm, and the linear layer, which is read apart: what it reads is a denoiser's features."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm_final = nn.LayerNorm(shape.hidden, eps=EPSILON, bias=False)
        self.linear = nn.Linear(shape.hidden, shape.vocabulary)
        self.adaLN_modulation = nn.Linear(shape.conditioning, 2 * shape.hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, L, H) of the last block → (B, L, H) that `linear` reads."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return modulate(self.norm_final(x), shift, scale)


class BareOutput(OutputLayer):
    """The output of a network whose last block is read as it is: no norm, no modulation and no linear layer."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, L, H) of the last block, unchanged."""
        return x


class DiffusionTransformer(nn.Module):
    """The network. It has no dropout: a policy's sampling and gradient passes must be the same function.

    Args:
        output_layer: in place of the family's own, `OutputLayer`.
    """

    def __init__(self, shape: Shape, output_layer: OutputLayer | None = None):
        super().__init__()
        self.vocab_embed = TokenEmbedding(shape.vocabulary, shape.hidden)
        self.sigma_map = NoiseEmbedding(shape.conditioning)
        self.rotary_emb = Rotary(shape.hidden // shape.heads)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.output_layer = OutputLayer(shape) if output_layer is None else output_layer
        self._contexts: Contexts | None = None

    def checkpoint_blocks(self, contexts: Contexts | None = None) -> None:
        """See `teachers.denoiser.Denoiser.checkpoint_activations`."""
        self._contexts = noop_context_fn if contexts is None else contexts

    def forward(
        self,
        embeddings: Tensor,
        sigma: Tensor,
        visible: Mask | None = None,
        positions: Tensor | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """What the output's linear layer reads, in the positions of the tokens it describes.

        Args:
            embeddings: (B, L, H) of `vocab_embed`, or mixtures of its rows.
            sigma: (B,) noise levels.
            visible: bool that broadcasts to (B, N, L, L), True where a query sees a key, or tiles; None for everywhere.
            positions: (B or 1, L) of the rotary; 0 … L−1 by default.
            window: where the blocks keep their keys and values, and find those of columns that are not among the L;
                ``visible`` is then (B, N, L, E).

        Returns:
            (B, L, H).
        """
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        condition, rotation = self.sigma_map(sigma), self.rotary_emb(positions)
        x = embeddings
        for number, block in enumerate(self.blocks):
            keep = None if window is None else partial(window.put, number)
            x = self._through(block, x, condition, rotation, visible, keep)
        return self.output_layer(x, condition)

    def _through(self, block: nn.Module, *inputs: object) -> Tensor:
        if self._contexts is None or not torch.is_grad_enabled():
            return block(*inputs)
        # nothing is drawn in a block, so there is no random state to keep
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=self._contexts)
