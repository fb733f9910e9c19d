"""`fewstep markov`: an exact Markov source as a folder that is teacher and judge, with rows that it wrote."""

from __future__ import annotations

import math
from pathlib import Path

from distill.data.source_text import documents, estimated, word_tokenizer, write_source
from distill.data.tokenizers import load_tokenizer
from distill.runtime.messages import say
from distill.runtime.run_folder import check_new_folder, new_folder
from teachers.errors import UserError
from teachers.markov import random_source

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
    folder = write_source(new_folder(out), source, words, {"train": drawn[:rows], "heldout": drawn[rows:]})
    say(
        f"{source.tokens} tokens, order {order}: entropy {source.entropy() / length:.4f} nats a token in rows of "
        f"{length} (perplexity {math.exp(source.entropy() / length):.3f}), {source.entropy_rate():.4f} in endless "
        f"ones; {folder} is for teacher.path, evaluate.judge and tokenizer.path, its train.jsonl and heldout.jsonl for "
        "data.path with data.pack=false",
    )
    return folder
