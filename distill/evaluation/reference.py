"""Held-out real text, for figures of models to be read beside."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, DistillConfig, EvaluateConfig
from distill.data.corpus import load_corpus


def reference_text(config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> DataConfig | None:
    """Where held-out real text is for a distillation's evaluation; None where there is no text at all."""
    name, text = config.evaluate.data, config.data
    if name is None:
        return text
    shape = text or heldout_text(name, config.sequence_length, tokenizer)
    return shape.model_copy(update={"path": name, "heldout": name})


def heldout_text(path: str, length: int, tokenizer: PreTrainedTokenizerBase) -> DataConfig:
    """Text that no config describes: a tokenizer without an end-of-text token is one whose documents are whole rows."""
    return DataConfig(path=path, heldout=path, length=length, pack=tokenizer.eos_token_id is not None)


def reference_rows(text: DataConfig, config: EvaluateConfig, length: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Held-out rows, at most ``config.samples``, none twice."""
    text = text.model_copy(update={"length": length})
    if text.heldout is not None:
        corpus = load_corpus(text, tokenizer, text.heldout)
    else:
        corpus = load_corpus(text, tokenizer).split(text.heldout_fraction)[1]
    return corpus.batch(config.seed, range(min(config.samples, corpus.rows)))
