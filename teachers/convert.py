"""Autoregressive → diffusion: the same weights, another mask, one more token."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.family import Checkpoint
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.loading import load_model
from teachers.source import reason
from teachers.vocabulary import read_tokenizer
from teachers.weights import weight_of


def from_autoregressive(name: str, tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec) -> StockDenoiser:
    """Load an autoregressive model as the start of a denoiser.

    Embedding rows that the vocabulary lacks (the mask's) are added; the mask's embedding starts as the mean of the
    others, so that a masked position says nothing in particular.

    A table with more rows than the tokenizer has entries stays as it is: published models pad theirs.

    Raises:
        UserError: the model comes with a tokenizer that gives other ids, or lacks rows for ordinary tokens.
    """
    checkpoint = resolve(name)
    checkpoint.require({"stock class": "a model to convert must be one; set model.init to a causal language model"})
    model = load_model(checkpoint)
    had = weight_of(model.get_input_embeddings()).shape[0]
    _check_extends(checkpoint, had, tokenizer)
    if had < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())}:
            mean = table[:had].mean(0)
            table[had:] = mean
            table[spec.mask_id] = mean
    return StockDenoiser(model, replace(spec, vocabulary=max(had, len(tokenizer))))


def _check_extends(checkpoint: Checkpoint, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that is not the model's own, with special tokens added at most."""
    ours, own, folder = tokenizer.get_vocab(), {}, checkpoint.folder
    if any(folder.glob("*token*")) or any(folder.glob("vocab*")):
        try:
            own = read_tokenizer(folder).get_vocab()
        except Exception as error:  # tokenizers raises bare ones
            raise UserError(
                f"cannot read the tokenizer of model {checkpoint.name!r} ({reason(error)}); make its folder whole, or "
                "remove its tokenizer files if they are not to be compared with the one you train with"
            ) from error
    changed = any(ours.get(token) != entry for token, entry in own.items())
    lacking = any(entry >= rows and entry not in tokenizer.added_tokens_decoder for entry in ours.values())
    if changed or lacking:
        raise UserError(
            f"model {checkpoint.name!r} has {rows} vocabulary entries of its own and the tokenizer "
            f"{len(tokenizer)} others; set tokenizer.path to the tokenizer the model was trained with, with a mask "
            "token added"
        )
