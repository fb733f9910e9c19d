"""Autoregressive → diffusion: the same weights, another mask, one more token."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from teachers.denoiser import DenoiserSpec
from teachers.families.causal import CausalDenoiser, load_pretrained


def from_autoregressive(name: str, tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec) -> CausalDenoiser:
    """Load an autoregressive model as the start of a denoiser.

    Embedding rows that the vocabulary lacks (the mask's) are added; the mask's embedding starts as the mean of the
    others, so that a masked position says nothing in particular.

    A table with more rows than the tokenizer has entries stays as it is: published models pad theirs.
    """
    model = load_pretrained(name)
    had = model.get_input_embeddings().weight.shape[0]
    if had < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            mean = table[:had].mean(0)
            table[had:] = mean
            table[spec.mask_id] = mean
    return CausalDenoiser(model, replace(spec, vocabulary=max(had, len(tokenizer))))
