"""Teachers of random weights: they cost, weigh and launch what trained ones of the same shape do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.data.tokenizers import load_tokenizer
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.vocabulary import token_id


def llama(hidden: int, layers: int, heads: int, inner: int | None = None) -> dict[str, Any]:
    """The shape of a network of LLaDA's kind: full attention heads, and an output layer of its own."""
    return {
        "hidden_size": hidden, "intermediate_size": inner or 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": False,
    }  # fmt: skip


def random_teacher(
    kind: str, shape: dict[str, Any], vocabulary: int, length: int,
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
) -> Denoiser:  # fmt: skip
    """A network with the bundled tokenizer's special tokens, made where it will be."""
    tokenizer = load_tokenizer("bundled:teacher")
    mask_id = token_id(tokenizer, "mask")
    assert mask_id is not None
    spec = DenoiserSpec(mask_id, vocabulary, length, token_id(tokenizer, "eos"), token_id(tokenizer, "pad"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        teacher = create_denoiser(kind, shape, spec)
    torch.set_default_dtype(before)
    return teacher


def save_teacher(folder: Path, *made: Any, **how: Any) -> int:
    """Save a `random_teacher` as a checkpoint; returns its parameters."""
    teacher = random_teacher(*made, **how)
    teacher.save(folder)
    load_tokenizer("bundled:teacher").save_pretrained(folder)
    return sum(parameter.numel() for parameter in teacher.parameters())
