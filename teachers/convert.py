"""Autoregressive → diffusion: the same weights, another mask, one more token."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.causal import CausalDenoiser, load_pretrained


def from_autoregressive(name: str, tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec) -> CausalDenoiser:
    """Load an autoregressive model as the start of a denoiser.

    Embedding rows that the vocabulary lacks (the mask's) are added; the mask's embedding starts as the mean of the
    others, so that a masked position says nothing in particular.

    Raises:
        UserError: the model has more entries than the tokenizer, so it was trained with another one.
    """
    model = load_pretrained(name)
    had = model.get_input_embeddings().weight.shape[0]
    if had > len(tokenizer):
        raise UserError(
            f"model {name!r} has {had} vocabulary entries and the tokenizer {len(tokenizer)}; "
            "give the tokenizer the model was trained with, with a mask token added"
        )
    if had < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table[had:] = table[:had].mean(0)
            table[spec.mask_id] = table[:had].mean(0)
    return CausalDenoiser(model, spec)
