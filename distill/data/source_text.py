"""Rows of an exact source as text: its tokenizer, and documents that read back as the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.config import DataConfig
from distill.data.corpus import load_corpus
from distill.data.tokenizers import PLAIN_TEXT, SPECIAL
from distill.runtime.messages import say
from teachers.errors import UserError
from teachers.files import publish
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.markov import check_table, estimate_source
from teachers.randomness import generator_of
from teachers.vocabulary import token_id


def write_source(
    folder: Path, source: SourceDenoiser, tokenizer: PreTrainedTokenizerBase, corpora: dict[str, list[str]]
) -> Path:
    """A source's folder, whole or not at all: tables, tokenizer, and a ``NAME.jsonl`` of documents for each corpus.

    Args:
        folder: does not exist, or is empty.

    Raises:
        UserError: it can not be written.
    """

    def write(partial: Path) -> None:
        source.save(partial)
        tokenizer.save_pretrained(partial)
        for name, texts in corpora.items():
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (partial / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    try:
        return publish(folder, write)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to {folder}: {reason}; name a folder with room that you may write to") from error


def word_tokenizer(words: list[str] | None, tokens: int, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``tokens`` short words, written with spaces between them, and the mask; no others.

    Args:
        words: None for any.
    """
    words = [word(number) for number in range(tokens)] if words is None else words
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, mask_token=SPECIAL["mask_token"]
    )


SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvwyz" for vowel in "aeiou"]


def word(number: int) -> str:
    """The ``number``-th word, in syllables as digits: ba, be, …, zu, beba, bebe, …"""
    more, last = divmod(number, len(SYLLABLES))
    return (word(more) if more else "") + SYLLABLES[last]


def estimated(
    text: str, tokenizer: PreTrainedTokenizerBase, order: int, length: int, smoothing: float
) -> SourceDenoiser:
    """The source of a corpus, every entry of the tokenizer but the mask being a token."""
    mask_id, eos_id, pad_id = (token_id(tokenizer, "mask"), token_id(tokenizer, "eos"), token_id(tokenizer, "pad"))
    if mask_id is None:
        raise UserError("the tokenizer has no mask token; give one that has, e.g. bundled:teacher")
    check_table(len(tokenizer) - 1, order)
    data = DataConfig(path=text, length=length, pack=eos_id is not None)
    stream = torch.from_numpy(load_corpus(data, tokenizer).tokens.astype(np.int64))
    tokens = len(tokenizer) - 1
    return estimate_source(stream[None], tokens, order, smoothing, length, mask_id, eos_id, pad_id)


def documents(source: SourceDenoiser, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[str]:
    """Rows of the source as text that reads back as the same tokens.

    A source estimated from bytes now and then writes what is no text. Such rows are left out; the others follow the
    source given that.

    Raises:
        UserError: more than half of the rows are no text.
    """
    generator = generator_of(seed, 1)  # not the one that the tables were drawn with
    kept: list[str] = []
    tried = 0
    while len(kept) < count:
        drawn = source.sample(max(256, count - len(kept)), generator)
        kept += survivors(drawn, tokenizer)
        tried += len(drawn)
        if 2 * len(kept) < tried:
            raise UserError(
                f"{tried - len(kept)} of {tried} rows of the source are no text that its tokenizer reads back as the "
                "same tokens; give a tokenizer without merges, of bytes or words"
            )
    if len(kept) < tried:
        say(f"{tried - len(kept)} of {tried} rows were no text and were left out")
    return kept[:count]


def survivors(rows: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of those rows (N, L) that are tokenized to the same tokens again."""
    texts = tokenizer.batch_decode(rows.tolist(), clean_up_tokenization_spaces=False)
    again = tokenizer(texts, **PLAIN_TEXT)["input_ids"]
    return [text for text, row, ids in zip(texts, rows.tolist(), again, strict=True) if row == ids and text.strip()]
