"""The real classes at the smallest sizes: networks of every family, random but for their seed."""

from __future__ import annotations

from typing import Any

import torch

from teachers.denoiser import DenoiserSpec
from teachers.families.dit.denoiser import DitDenoiser, Release
from teachers.families.dit.family import CAPABILITIES
from teachers.families.dit.network import DiffusionTransformer, Shape
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.loading import create_denoiser


def shape(width: int = 16, layers: int = 1, **changes: Any) -> dict[str, Any]:
    """``model.shape`` of a small network of a stock class; ``changes`` are more of its fields."""
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": width // 2, "intermediate_size": width + width // 2, "tie_word_embeddings": True,
    } | changes  # fmt: skip


def stock(
    vocabulary: int, length: int, mask_id: int = 1, *, sizes: dict[str, Any] | None = None, seed: int = 0, **spec: Any
) -> StockDenoiser:
    """A stock Qwen3 as a denoiser, in eval mode.

    Args:
        sizes: see `shape`. spec: more fields of `DenoiserSpec`.
    """
    torch.manual_seed(seed)
    sizes = shape() if sizes is None else sizes
    return create_denoiser("qwen3", sizes, DenoiserSpec(mask_id, vocabulary, length, **spec)).eval()


def mdlm(vocabulary: int, length: int, *, seed: int = 0, time_conditioned: bool = False) -> DitDenoiser:
    """A diffusion transformer as of MDLM's releases, in eval mode; the last entry of the vocabulary is the mask."""
    torch.manual_seed(seed)
    spec = DenoiserSpec(vocabulary - 1, vocabulary, length, time_conditioned=time_conditioned)
    sizes = Shape(vocabulary, hidden=16, conditioning=8, blocks=1, heads=2)
    return DitDenoiser(DiffusionTransformer(sizes), spec, Release("backbone.", {}, CAPABILITIES)).eval()
