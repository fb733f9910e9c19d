"""`fewstep markov`: an exact Markov source as a folder that is teacher and judge, with rows that it wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.config import DataConfig
from distill.data.corpus import load_corpus
from distill.data.tokenizers import PLAIN_TEXT, SPECIAL, load_tokenizer
from distill.runtime.messages import say
from distill.runtime.run_folder import check_new_folder, new_folder
from teachers.errors import UserError
from teachers.files import publish
from teachers.markov import MarkovDenoiser, check_source, estimate_source, random_source

TOKENS, SHARPNESS = 16, 2.0  # [own]: about 1.7 of the log 16 = 2.8 nats of uniform tokens


def markov_command(
    out: Path,
    tokens: int | None = None,
    order: int = 1,
    sharpness: float | None = None,
    length: int = 32,
    seed: int = 0,
    rows: int = 20_000,
    heldout: int = 2_048,
    text: str | None = None,
    tokenizer: str | None = None,
    smoothing: float | None = None,
) -> Path:
    """Write a source into the new folder ``out``: tables, tokenizer, ``train.jsonl`` and ``heldout.jsonl``.

    Each document of the two corpora is one row, for ``data.pack=false``.

    Args:
        tokens, sharpness: of a random source; `TOKENS` and `SHARPNESS` by default.
        order: 1 or 2.
        length: L, tokens of a row.
        seed: of the tables and of the rows.
        rows, heldout: documents of the two corpora.
        text: a corpus to estimate the source from, instead of a random one.
        tokenizer: for ``text``, with its mask token; kept.
        smoothing: for ``text``, see `estimate_source`; 1 by default.

    Returns:
        ``out``, for ``teacher.path`` and ``evaluate.judge``.

    Raises:
        UserError: a value out of range, flags of a random source together with ``text``, a folder that exists, or a
            tokenizer that cannot write down what the source writes.
    """
    check_new_folder(out)
    for flag, value in (("--rows", rows), ("--heldout", heldout)):
        if value < 1:
            raise UserError(f"{flag} {value} is too small; give at least 1")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} is outside 0 to 2^63 - 1; give another one")
    if text is None:
        if tokenizer is not None or smoothing is not None:
            raise UserError("--tokenizer and --smoothing are for a source estimated from text; give --text, too")
        source = random_source(
            TOKENS if tokens is None else tokens, order, SHARPNESS if sharpness is None else sharpness, seed, length
        )
        words = word_tokenizer(source.tokens, length)
    else:
        if tokens is not None or sharpness is not None:
            raise UserError("--tokens and --sharpness are for a random source; leave them out with --text")
        if tokenizer is None:
            raise UserError(f"--text {text!r} needs the tokenizer to read it with; give one, e.g. bundled:teacher")
        words = load_tokenizer(tokenizer)
        source = estimated(text, words, order, length, 1.0 if smoothing is None else smoothing)
    drawn = documents(source, words, rows + heldout, seed)
    folder = new_folder(out)
    source.save(folder)
    words.save_pretrained(folder)
    for name, part in (("train", drawn[:rows]), ("heldout", drawn[rows:])):
        publish(folder / f"{name}.jsonl", "".join(json.dumps({"text": d}) + "\n" for d in part))
    say(
        f"{source.tokens} tokens, order {order}: entropy {source.entropy() / length:.4f} nats a token in rows of "
        f"{length} (perplexity {math.exp(source.entropy() / length):.3f}), {source.entropy_rate():.4f} in endless "
        f"ones; {folder} is for teacher.path, evaluate.judge and tokenizer.path, its train.jsonl and heldout.jsonl for "
        "data.path with data.pack=false",
    )
    return folder


def word_tokenizer(tokens: int, length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``tokens`` short words, written with spaces between them, and the mask; no others."""
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(tokens)}))
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
) -> MarkovDenoiser:
    """The source of a corpus, every entry of the tokenizer but the mask being a token."""
    if tokenizer.mask_token_id is None:
        raise UserError("the tokenizer has no mask token; give one that has, e.g. bundled:teacher")
    check_source(len(tokenizer) - 1, order, length)
    data = DataConfig(path=text, length=length, pack=tokenizer.eos_token_id is not None)
    stream = torch.from_numpy(load_corpus(data, tokenizer).tokens.astype(np.int64))
    return estimate_source(
        stream[None], len(tokenizer) - 1, order, smoothing, length,
        tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip


def documents(source: MarkovDenoiser, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[str]:
    """Rows of the source as text that reads back as the same tokens.

    A source estimated from bytes now and then writes what is no text. Such rows are left out; the others follow the
    source given that.

    Raises:
        UserError: more than half of the rows are no text.
    """
    # not the generator that the tables were drawn with
    state = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
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
