"""`fewstep oracle`: an exact source as a folder that is teacher and judge, with rows that it wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.data.source_text import documents, estimated, word_tokenizer, write_source
from distill.data.tokenizers import load_tokenizer
from distill.runtime.messages import say
from distill.runtime.run_folder import check_new_folder, new_folder
from teachers.errors import UserError, nearest
from teachers.oracle.making import random_oracle

if TYPE_CHECKING:
    from teachers.oracle.denoiser import SourceDenoiser

SETTINGS: dict[str, dict[str, Any]] = {
    "markov": {"tokens": 16, "order": 1, "sharpness": 2.0, "length": 32},  # about 1.7 of the log 16 = 2.8 nats
    "copies": {"tokens": 8, "length": 16, "noise": 0.01},
    "brackets": {"kinds": 2, "depth": 4, "length": 16, "noise": 0.01, "stray": 1e-9},
    "templates": {"tokens": 8, "length": 16, "noise": 0.1},
}
"""What each kind of source is made of, with what it has by default [own]."""
TEXT: dict[str, Any] = {"order": 1, "length": 32, "smoothing": 1.0}
"""The same of a Markov source that is counted from a text."""


def oracle_command(
    kind: str,
    out: Path,
    seed: int = 0,
    rows: int = 20_000,
    heldout: int = 2_048,
    text: str | None = None,
    tokenizer: str | None = None,
    **given: int | float | None,
) -> Path:
    """Write a source into the new folder ``out``: tables, tokenizer, ``train.jsonl`` and ``heldout.jsonl``.

    Each document of the two corpora is one row, for ``data.pack=false``.

    Args:
        kind: of `SETTINGS`.
        seed: of the tables and of the rows.
        rows, heldout: documents of the two corpora.
        text: a corpus to estimate a Markov source from, instead of a random one.
        tokenizer: for ``text``, with its mask token; kept.
        given: settings of `SETTINGS` or `TEXT`; None for the default.

    Returns:
        ``out``, for ``teacher.path`` and ``evaluate.judge``.

    Raises:
        UserError: a value out of range, a flag of another kind of source, a folder that exists, or a tokenizer that
            cannot write down what the source writes.
    """
    if kind not in SETTINGS:
        raise UserError(f"source {kind!r} is unknown{nearest(kind, list(SETTINGS))}; choose {', '.join(SETTINGS)}")
    check_new_folder(out)
    for flag, value in (("--rows", rows), ("--heldout", heldout)):
        if value < 1:
            raise UserError(f"{flag} {value} is too small; give at least 1")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed} is outside 0 to 2^63 - 1; give another one")
    _check_text(kind, text, tokenizer)
    settings = _settings(kind, text, {name: value for name, value in given.items() if value is not None})
    if text is None:
        source = random_oracle(kind, seed, settings)
        words = word_tokenizer(source.source.words(), source.tokens, settings["length"])
    else:
        assert tokenizer is not None, "checked above"
        words = load_tokenizer(tokenizer)
        source = estimated(text, words, **settings)
    drawn = documents(source, words, rows + heldout, seed)
    folder = write_source(new_folder(out), source, words, {"train": drawn[:rows], "heldout": drawn[rows:]})
    _tell(source, folder)
    return folder


def _check_text(kind: str, text: str | None, tokenizer: str | None) -> None:
    if text is None and tokenizer is not None:
        raise UserError("--tokenizer is for a source estimated from text; give --text, too")
    if text is not None and kind != "markov":
        raise UserError(f"--text is for a source of kind markov, and this is {kind}; leave it out")
    if text is not None and tokenizer is None:
        raise UserError(f"--text {text!r} needs the tokenizer to read it with; give one, e.g. bundled:teacher")


def _settings(kind: str, text: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """All settings of a source, given ones and defaults."""
    default = SETTINGS[kind] if text is None else TEXT
    what = f"a source of kind {kind}" if text is None else "a source counted from --text"
    for name in given:
        if name not in default:
            allowed = ", ".join(f"--{flag}" for flag in default)
            raise UserError(f"--{name} is no setting of {what}, which has {allowed}; leave it out")
    return default | given


def _tell(source: SourceDenoiser, folder: Path) -> None:
    length = source.spec.max_length
    entropy = source.entropy() / length
    say(
        f"{source.source.description(length)}: entropy {entropy:.4f} nats a token in rows of {length} (perplexity "
        f"{math.exp(entropy):.3f}); {folder} is for teacher.path, evaluate.judge and tokenizer.path, its train.jsonl "
        "and heldout.jsonl for data.path with data.pack=false"
    )
