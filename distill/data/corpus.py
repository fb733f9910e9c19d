"""Corpora as rows of tokens: tokenized once, packed, and dealt in an order that is a function of (seed, position)."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig
from distill.data.documents import corpus_digest, read_chunks
from distill.data.encoders import encoder_of, tokenizer_digest
from distill.data.encoding import CannotEncode, Encoded, Encoder, Piece, encode_all, pieces
from distill.data.token_files import Figures, shared_file, write_figures, write_tokens
from distill.runtime.messages import warn
from distill.runtime.progress import track
from distill.runtime.world import first_to_say
from teachers.errors import UserError
from teachers.vocabulary import token_id

BLOCK = 1 << 20
"""Rows that are shuffled at once [own]: 8 MB of memory, however large the corpus is."""
FORMAT = 1
"""Of the cache's files: counted up whenever the same text and tokenizer give other tokens."""


@dataclass(frozen=True)
class Corpus:
    """A token stream, served as rows of ``length``.

    Attributes:
        tokens: (N,) all documents, each followed by the end-of-text token; or (rows × length,) when not packed.
        bytes_per_token: UTF-8 bytes of normalised text a token stands for, for bits per byte.
        packed: rows may start anywhere; each epoch starts at another offset.
        digest: of the tokens, where it is known without reading them.
        mapping: the file in memory that the tokens are in, if they are in one.
    """

    tokens: np.ndarray
    length: int
    bytes_per_token: float
    packed: bool = True
    digest: str | None = None
    mapping: mmap.mmap | None = field(default=None, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        return max(1, len(self.tokens) // self.length - (1 if self.packed and len(self.tokens) > self.length else 0))

    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another: tokens, row length and a digest."""
        digest = self.digest or hashlib.sha256(np.ascontiguousarray(self.tokens).data).hexdigest()
        return {"tokens": len(self.tokens), "length": self.length, "sha256": digest[:16]}

    def batch(self, seed: int, positions: Sequence[int]) -> Tensor:
        """Rows at global ``positions`` of the endless shuffled order of ``seed``: (len(positions), length) int64."""
        largest = min(len(self.tokens) - self.rows * self.length, self.length) if self.packed else None
        out = np.empty((len(positions), self.length), dtype=np.int64)
        for i, (row, offset) in enumerate(deal(seed, positions, self.rows, largest)):
            start = offset + row * self.length
            out[i] = self.tokens[start : start + self.length]
        if self.mapping is not None:  # pages that were read would count as this process's memory from now on
            self.mapping.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(out)

    def split(self, fraction: float) -> tuple[Corpus, Corpus]:
        """Hold out the last ``fraction`` of the stream, in whole rows: (train, held-out)."""
        held = max(1, int(len(self.tokens) // self.length * fraction)) * self.length
        if len(self.tokens) - held < self.length:
            raise UserError(
                f"the corpus has {len(self.tokens)} tokens, too few to hold out a row of {self.length} and train on "
                "another; give more text, set data.heldout to a file, or a smaller data.length"
            )
        cut = len(self.tokens) - held
        return self._part(0, cut), self._part(cut, len(self.tokens))

    def _part(self, start: int, stop: int) -> Corpus:
        digest = self.digest and hashlib.sha256(f"{start} to {stop} of {self.digest}".encode()).hexdigest()
        return replace(self, tokens=self.tokens[start:stop], digest=digest)


@dataclass(frozen=True)
class TrajectoryCorpus:
    """Rows with the order in which the teacher unmasked them.

    Attributes:
        tokens: (N, L). order: (N, L) the pass, from 0, at which each was unmasked.
    """

    tokens: np.ndarray
    order: np.ndarray

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        return len(self.tokens)

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others: tokens, row length and a digest of tokens and order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens).data)
        digest.update(np.ascontiguousarray(self.order).data)
        return {"tokens": self.tokens.size, "length": self.tokens.shape[1], "sha256": digest.hexdigest()[:16]}

    def batch(self, seed: int, positions: Sequence[int]) -> Tensor:
        """As `Corpus.batch`, rows in the same order as its: (len(positions), 2, L) int64, tokens and order."""
        rows = [row for row, _ in deal(seed, positions, self.rows, None)]
        return torch.from_numpy(np.stack([self.tokens[rows], self.order[rows]], 1).astype(np.int64))


# --- order ---------------------------------------------------------------------------------------------------------


def deal(seed: int, positions: Sequence[int], rows: int, largest: int | None) -> Iterator[tuple[int, int]]:
    """For each position of the endless shuffled order of ``seed``, the row and the offset that its epoch starts at.

    Blocks of `BLOCK` rows come in a random order, and rows in a random order within their block.

    Args:
        rows: in an epoch.
        largest: offset; None where there is none.
    """
    for position in positions:
        epoch, index = divmod(position, rows)
        blocks = -(-rows // BLOCK)
        order, offset = _shuffled((seed, epoch), rows if blocks == 1 else blocks, largest)
        if blocks == 1:
            yield int(order[index]), offset
            continue
        # the last block is shorter, wherever it comes in this epoch
        short, missing = int(np.flatnonzero(order == blocks - 1)[0]), blocks * BLOCK - rows
        turn, inside = divmod(index if index < short * BLOCK + BLOCK - missing else index + missing, BLOCK)
        block = int(order[turn])
        size = BLOCK - missing if block == blocks - 1 else BLOCK
        yield block * BLOCK + int(_shuffled((seed, epoch, block), size, None)[0][inside]), offset


@lru_cache(maxsize=8)
def _shuffled(seed: tuple[int, ...], count: int, largest: int | None) -> tuple[np.ndarray, int]:
    """(count,) a random order, and a random offset up to the largest."""
    shuffle = np.random.default_rng(seed)
    return shuffle.permutation(count), int(shuffle.integers(largest + 1)) if largest is not None else 0


# --- from text -----------------------------------------------------------------------------------------------------


def load_corpus(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    path: str | None = None,
    processes: int | None = None,
    mask_id: int | None = None,
) -> Corpus:
    """The rows of a corpus: read, tokenized and packed the first time, and mapped from the cache from then on.

    Several processes may ask at once: one of them tokenizes, the others wait. Memory does not grow with the corpus.

    Args:
        path: read this instead of ``config.path``, e.g. its held-out file.
        processes: that tokenize a large corpus; by default one for each core.
        mask_id: see `encoder_of`.

    Raises:
        UserError: see `read_chunks`; a document that cannot be encoded, or fewer tokens than one row.
    """
    if path is not None:
        config = config.model_copy(update={"path": path, "revision": None})  # a name of its own
    if config.pack:
        _end(tokenizer)
    encoder = encoder_of(tokenizer, config.special_tokens, mask_id)
    processes = processes or len(os.sched_getaffinity(0))
    file = shared_file(
        cache_key(config, tokenizer, encoder), lambda folder: _write(folder, config, tokenizer, encoder, processes)
    )
    figures = file.figures
    if figures.tokens < config.length:
        raise UserError(
            f"data.path {config.path!r} has {figures.tokens} tokens, fewer than data.length {config.length}; "
            "give more text or a smaller data.length"
        )
    _say_spelling(config, figures)
    return Corpus(file.tokens, config.length, figures.bytes_per_token, config.pack, figures.sha256, file.mapping)


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that is put between documents."""
    end = token_id(tokenizer, "eos")
    if end is None:
        raise UserError(
            "the tokenizer has no end-of-text token to put between documents; set its eos_token, or data.pack to false"
        )
    return end


def cache_key(config: DataConfig, tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> str:
    """A digest of all that the tokens depend on."""
    parts = {
        "format": FORMAT,
        "text": corpus_digest(config),
        "tokenizer": tokenizer_digest(tokenizer, encoder),
        "special_tokens": config.special_tokens,
        "shape": ["packed", token_id(tokenizer, "eos")] if config.pack else ["rows", config.length],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _write(
    folder: Path, config: DataConfig, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, processes: int
) -> None:
    """Tokenize a corpus into a folder of the cache."""
    encoded = Tally(encode_all(encoder, pieces(_tracked(config), encoder.cut), processes))
    try:
        parts = packed(encoded, _end(tokenizer)) if config.pack else whole_rows(encoded, config)
        count, dtype, digest = write_tokens(folder, parts, len(tokenizer))
    except CannotEncode as error:
        document, why = error.args
        raise UserError(
            f"document {document} of {config.path!r} can not be encoded ({why}); give text in the words that the "
            "tokenizer knows"
        ) from error
    if not encoded.documents:
        raise UserError(f"data.path {config.path!r} holds no text; give a corpus that is not empty")
    write_figures(folder, Figures(count, dtype, digest, encoded.bytes_per_token, len(encoded.spelling)))


def _tracked(config: DataConfig) -> Iterator[tuple[str, bool]]:
    return iter(track(read_chunks(config), f"tokenizing {config.path}", unit="documents"))


def packed(encoded: Iterable[tuple[Piece, Encoded]], eos: int) -> Iterator[np.ndarray]:
    """The tokens of all documents, an end-of-text token after each that does not end with one itself."""
    for piece, tokens in encoded:
        yield tokens.ids
        if piece.ends and not (len(tokens.ids) and tokens.ids[-1] == eos):
            yield np.asarray([eos])


def whole_rows(encoded: Iterable[tuple[Piece, Encoded]], config: DataConfig) -> Iterator[np.ndarray]:
    """The tokens of each document in whole rows, what is left of it cut off.

    Raises:
        UserError: a document is shorter than a row.
    """
    rest, count = np.empty(0, np.int32), 0
    for piece, tokens in encoded:
        rest, count = np.concatenate([rest, tokens.ids]), count + len(tokens.ids)
        whole = len(rest) // config.length * config.length
        yield rest[:whole]
        rest = rest[whole:]
        if piece.ends:
            if count < config.length:
                raise UserError(
                    f"document {piece.document} of {config.path!r} has {count} tokens, fewer than data.length "
                    f"{config.length}; set data.pack to true, or a smaller data.length"
                )
            rest, count = rest[:0], 0


class Tally:
    """Passes encoded pieces on, and counts them.

    Attributes:
        documents: how many there were.
        spelling: the numbers of those that spell special tokens, which were read as text.
    """

    def __init__(self, encoded: Iterable[tuple[Piece, Encoded]]):
        self._encoded = encoded
        self.documents, self.spelling = 0, set[int]()
        self._bytes, self._tokens = 0, 0

    def __iter__(self) -> Iterator[tuple[Piece, Encoded]]:
        for piece, tokens in self._encoded:
            self.documents = piece.document
            if tokens.spells:
                self.spelling.add(piece.document)
            self._bytes += tokens.text_bytes
            self._tokens += tokens.text_tokens
            yield piece, tokens

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of normalised text a token stands for."""
        return self._bytes / max(1, self._tokens)


def _say_spelling(config: DataConfig, figures: Figures) -> None:
    """One line on special tokens that documents spell: chat turns and separators are often meant as tokens."""
    if not figures.spelling:
        return
    those = "1 document" if figures.spelling == 1 else f"{figures.spelling:,} documents"
    spell = "spells" if figures.spelling == 1 else "spell"
    if config.special_tokens == "text":
        what = "special tokens; they are read as text, unless data.special_tokens is set to tokens"
    else:
        what = "the mask token; it is read as text"
    message = f"{those} of {config.path} {spell} {what}"
    if first_to_say(message):
        warn(message, "note")
