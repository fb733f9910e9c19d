"""Corpora as rows of tokens: tokenizing, packing, and an order that is a pure function of (seed, position)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig
from distill.data.documents import read_documents
from distill.data.tokenizers import PLAIN_TEXT, normalised
from distill.runtime.progress import track
from teachers.errors import UserError
from teachers.source import reason


@dataclass(frozen=True)
class Corpus:
    """A token stream, served as rows of ``length``.

    Attributes:
        tokens: (N,) all documents, each followed by the end-of-text token; or (rows × length,) when not packed.
        bytes_per_token: UTF-8 bytes of normalised text a token stands for, for bits per byte.
        packed: rows may start anywhere; each epoch starts at another offset.
    """

    tokens: np.ndarray
    length: int
    bytes_per_token: float
    packed: bool = True

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        return max(1, len(self.tokens) // self.length - (1 if self.packed and len(self.tokens) > self.length else 0))

    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another: tokens, row length and a digest."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens)).hexdigest()
        return {"tokens": len(self.tokens), "length": self.length, "sha256": digest[:16]}

    def batch(self, seed: int, positions: range | list[int]) -> Tensor:
        """Rows at global ``positions`` of the endless shuffled order of ``seed``: (len(positions), length) int64."""
        out = np.empty((len(positions), self.length), dtype=np.int64)
        epoch_of, order, offset = None, None, 0
        for i, position in enumerate(positions):
            epoch, index = divmod(position, self.rows)
            if epoch != epoch_of:
                shuffle = np.random.default_rng([seed, epoch])
                order, epoch_of = shuffle.permutation(self.rows), epoch
                spare = len(self.tokens) - self.rows * self.length
                offset = int(shuffle.integers(min(spare, self.length) + 1)) if self.packed else 0
            start = offset + int(order[index]) * self.length
            out[i] = self.tokens[start : start + self.length]
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
        parts = self.tokens[:cut], self.tokens[cut:]
        return tuple(Corpus(p, self.length, self.bytes_per_token, self.packed) for p in parts)  # type: ignore[return-value]


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
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens))
        digest.update(np.ascontiguousarray(self.order))
        return {"tokens": self.tokens.size, "length": self.tokens.shape[1], "sha256": digest.hexdigest()[:16]}

    def batch(self, seed: int, positions: range | list[int]) -> Tensor:
        """As `Corpus.batch`, rows in the same order as its: (len(positions), 2, L) int64, tokens and order."""
        dealt = Corpus(np.arange(self.rows), 1, 1.0, packed=False).batch(seed, positions)[:, 0].numpy()
        return torch.from_numpy(np.stack([self.tokens[dealt], self.order[dealt]], 1).astype(np.int64))


def load_corpus(config: DataConfig, tokenizer: PreTrainedTokenizerBase, path: str | None = None) -> Corpus:
    """Read, tokenize and pack a corpus.

    Args:
        path: read this instead of ``config.path``, e.g. its held-out file.

    Raises:
        UserError: see `read_documents`; or fewer tokens than one row.
    """
    if path is not None:
        config = config.model_copy(update={"path": path, "revision": None})  # a name of its own
    eos = tokenizer.eos_token_id
    if eos is None and config.pack:
        raise UserError(
            "the tokenizer has no end-of-text token to put between documents; set its eos_token, or data.pack to false"
        )
    pieces, text_bytes, text_tokens, documents = [], 0, 0, 0
    for document in track(read_documents(config), f"tokenizing {config.path}", unit="documents"):
        if not document.strip():
            continue
        documents += 1
        try:
            ids = np.asarray(tokenizer(document, **PLAIN_TEXT)["input_ids"], dtype=np.int32)
        except Exception as error:  # tokenizers raises the bare type
            raise UserError(
                f"document {documents} of {config.path!r} can not be encoded ({reason(error)}); give text in the words "
                "that the tokenizer knows"
            ) from error
        text_bytes += len(normalised(tokenizer, document).encode())
        text_tokens += len(ids)
        if config.pack:
            pieces += [ids, np.asarray([eos], dtype=np.int32)]
        elif len(ids) < config.length:
            raise UserError(
                f"document {documents} of {config.path!r} has {len(ids)} tokens, fewer than data.length "
                f"{config.length}; set data.pack to true, or a smaller data.length"
            )
        else:
            pieces.append(ids[: len(ids) // config.length * config.length])
    if not documents:
        raise UserError(f"data.path {config.path!r} holds no text; give a corpus that is not empty")
    tokens = np.concatenate(pieces)
    if len(tokens) < config.length:
        raise UserError(
            f"data.path {config.path!r} has {len(tokens)} tokens, fewer than data.length {config.length}; "
            "give more text or a smaller data.length"
        )
    return Corpus(tokens, config.length, text_bytes / max(1, text_tokens), config.pack)
