"""Tokenizers: loaded from a folder or a pinned name, or trained on a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from teachers.errors import UserError
from teachers.source import model_folder, reason
from teachers.vocabulary import read_tokenizer

if TYPE_CHECKING:  # whoever writes text with a finished model loads no config and no corpus
    from distill.config import DataConfig, TokenizerConfig

SPECIAL = {"eos_token": "<|endoftext|>", "mask_token": "<|mask|>", "pad_token": "<|pad|>"}
# a document that happens to contain "<|mask|>" contains these letters, not the token
PLAIN_TEXT: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
# typographic punctuation costs three bytes a sign and says no more than its plain form
PLAIN = {"“": '"', "”": '"', "‘": "'", "’": "'", "´": "'", "`": "'", "—": "--", "–": "-", "‐": "-", "…": "..."}


def train_tokenizer(config: TokenizerConfig, data: DataConfig) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a corpus. The smallest vocabulary, 259, is the 256 bytes and three special tokens."""
    from distill.data.encoding import first_candidate, pieces

    tokenizer = Tokenizer(models.BPE())
    if config.plain_punctuation:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(k, v) for k, v in PLAIN.items()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    needs_text = config.vocabulary > len(SPECIAL) + 256
    texts = (piece.text for piece in pieces(_chunks(data), first_candidate)) if needs_text else []
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=data.length, **SPECIAL)


def _chunks(data: DataConfig) -> Iterator[tuple[str, bool]]:
    """The texts of data, of whichever format; messages need a tokenizer that has a chat template already."""
    from distill.data.documents import read_chunks
    from distill.data.prompts import read_texts

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    return read_texts(data, plain) if data.prompted else read_chunks(data)


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a pinned hub name or ``bundled:NAME``; never remote code."""
    name = str(name)
    folder = model_folder(name, revision, weights=False)
    try:
        tokenizer = read_tokenizer(folder)
    except Exception as error:
        raise UserError(
            f"cannot load a tokenizer from {name!r} ({reason(error)}); name a folder that holds one"
        ) from error
    if not tokenizer.get_vocab().keys() - tokenizer.all_special_tokens:  # what transformers makes of a config alone
        raise UserError(
            f"{name!r} holds no tokenizer; give one that does: of a run, the run's folder or an export rather than a "
            "checkpoint's student-ema"
        )
    return tokenizer
