"""Prompts with what is to be written after them: tokenized once, one to a row, the row's end filled with end-of-text.

A row is the tokens of its prompt from column 0, those of its completion, one end-of-text token, and the *tail*: such
tokens up to the row's length. All but the prompt is open.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig
from distill.data.corpus import deal
from distill.data.encoders import mask_text, prompt_encoder, tokenizer_digest
from distill.data.encoding import CannotEncode, Encoded, Encoder, Piece, encode_all
from distill.data.prompts import Exchange, read_exchanges
from distill.data.tables import source_parts
from distill.data.token_files import Figures, shared_file, write_figures, write_tokens
from distill.runtime.messages import say
from distill.runtime.progress import track
from distill.runtime.world import first_to_say
from teachers.canvas import Batch, Canvas
from teachers.errors import UserError
from teachers.vocabulary import token_id

FORMAT = 1
"""Of the cache's files: counted up whenever the same rows and tokenizer give other tokens."""
BORDERS = "borders.bin"


@dataclass(frozen=True)
class PromptedCorpus:
    """Prompts, and what was written after each, served as rows of ``length``.

    Attributes:
        tokens: (N,) each row's prompt and then its completion, one row after another.
        borders: (2R + 1,) where each prompt and each completion begins, and where the last one ends.
        length: L.
        end: the end-of-text token, with which a row is filled up.
        labelled: whether there are completions, which then end with the end-of-text token unless they fill their row.
        bytes_per_token: UTF-8 bytes of normalised text that a token of a completion stands for, its end included.
        numbers: (rows,) which of the R rows are served, and in which order they are split; None for all, as they are.
        digest: of tokens and borders, where it is known without reading them.
        mappings: the files in memory that they are in, if they are in some.
    """

    tokens: np.ndarray
    borders: np.ndarray
    length: int
    end: int
    labelled: bool
    bytes_per_token: float
    numbers: np.ndarray | None = None
    digest: str | None = None
    mappings: tuple[mmap.mmap, ...] = field(default=(), repr=False, compare=False)

    @staticmethod
    def of(tokens: np.ndarray, given: np.ndarray, end: int, ends: Sequence[int] = ()) -> PromptedCorpus:
        """Rows (R, L) with prompts of ``given`` (R,) tokens, and what was written up to its first end token.

        Args:
            end: fills rows up. ends: the others that end a text.
        """
        length, place = tokens.shape[1], np.arange(tokens.shape[1])
        is_end = np.isin(tokens, [end, *ends]) & (place >= given[:, None])
        used = np.where(is_end.any(1), is_end.argmax(1) + 1, length)
        borders = np.append(0, np.cumsum(np.stack([given, used - given], 1)))
        return PromptedCorpus(tokens[place < used[:, None]], borders, length, end, True, 1.0)

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        return len(self.borders) // 2 if self.numbers is None else len(self.numbers)

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others: how many, their length, and a digest of tokens and borders."""
        digest = self.digest or _digest(self.tokens, self.borders)
        if self.numbers is not None:
            digest = hashlib.sha256(digest.encode() + self.numbers.tobytes()).hexdigest()
        return {"rows": self.rows, "length": self.length, "sha256": digest[:16]}

    def batch(self, seed: int, positions: Sequence[int], mask_id: int) -> Batch:
        """Rows at global ``positions`` of the endless shuffled order of ``seed``: canvases, and labels if there are.

        Args:
            mask_id: what open positions hold.
        """
        tokens = np.full((len(positions), self.length), self.end, dtype=np.int64)
        given = np.empty(len(positions), dtype=np.int64)
        for i, (row, _) in enumerate(deal(seed, positions, self.rows, None)):
            row = row if self.numbers is None else int(self.numbers[row])
            start, border, stop = (int(place) for place in self.borders[2 * row : 2 * row + 3])
            tokens[i, : stop - start] = self.tokens[start:stop]
            given[i] = border - start
        for mapping in self.mappings:  # pages that were read would count as this process's memory from now on
            mapping.madvise(mmap.MADV_DONTNEED)
        labels = torch.from_numpy(tokens)
        open_ = torch.arange(self.length) >= torch.from_numpy(given)[:, None]
        return Batch(Canvas(labels.masked_fill(open_, mask_id), open_), labels if self.labelled else None)

    def split(self, fraction: float) -> tuple[PromptedCorpus, PromptedCorpus]:
        """Hold out the last ``fraction`` of the rows: (train, held-out)."""
        held = max(1, int(self.rows * fraction))
        if held == self.rows:
            raise UserError(
                "the data have one row, too few to hold out one and train on another; give more rows, or set "
                "data.heldout to a file"
            )
        numbers = np.arange(self.rows) if self.numbers is None else self.numbers
        return replace(self, numbers=numbers[:-held]), replace(self, numbers=numbers[-held:])


def with_tail(tokens: np.ndarray, written: np.ndarray, end: int, ends: Sequence[int] = ()) -> np.ndarray:
    """Rows (R, L) that end: what was written (R, L) after the first end token becomes ``end``; ``ends`` are others."""
    is_end = np.isin(tokens, [end, *ends]) & written
    tail = np.cumsum(is_end, 1) > is_end
    return np.where(tail & written, end, tokens)


def _digest(tokens: np.ndarray, borders: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(tokens).data)
    digest.update(np.ascontiguousarray(borders).data)
    return digest.hexdigest()


# --- from a dataset ------------------------------------------------------------------------------------------------


def load_prompted(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    path: str | None = None,
    processes: int | None = None,
    mask_id: int | None = None,
) -> PromptedCorpus:
    """The rows of prompted data: read and tokenized the first time, and mapped from the cache from then on.

    Prompt and completion are tokenized apart, so that no token spans their border and a prompt's tokens are those that
    `fewstep generate --prompt` gives it. Special tokens that they spell are tokens.

    Args:
        path: read this instead of ``config.path``, e.g. its held-out file.
        processes: that tokenize many rows; by default one for each core.
        mask_id: the model's, for a tokenizer that calls no token its mask.

    Raises:
        UserError: see `read_exchanges`; a tokenizer without an end-of-text token, a prompt that holds the mask, a row
            that can not be encoded or is too long, or no row.
    """
    if path is not None:
        config = config.model_copy(update={"path": path, "revision": None})  # a name of its own
    end = token_id(tokenizer, "eos")
    if end is None:
        raise UserError("the tokenizer has no end-of-text token, with which completions end; set its eos_token")
    encoder = prompt_encoder(tokenizer, mask_id)
    processes = processes or len(os.sched_getaffinity(0))
    mask = mask_text(tokenizer, mask_id)
    key = _cache_key(config, tokenizer, encoder, mask, end)
    writer = _Writer(config, tokenizer, encoder, mask, end, processes)
    file = shared_file(key, writer.write)
    borders, mapping = _map_borders(file.folder / BORDERS)
    labelled = config.format != "prompt_only"
    corpus = PromptedCorpus(
        file.tokens, borders, config.length, end, labelled, file.figures.bytes_per_token,
        digest=file.figures.sha256, mappings=(file.mapping, mapping),
    )  # fmt: skip
    return _fitting(corpus, config)


def _map_borders(path: Path) -> tuple[np.ndarray, mmap.mmap]:
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, np.dtype("<i8")), mapping


def _cache_key(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, mask: str | None, end: int
) -> str:
    """A digest of all that tokens and borders depend on."""
    parts = {
        "format": ["prompted", FORMAT, config.format, config.columns.of(config.format)],
        "rows": source_parts(config),
        "tokenizer": [tokenizer_digest(tokenizer, encoder), tokenizer.chat_template, mask, end],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass
class _Writer:
    """Tokenizes a dataset into a folder of the cache."""

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    mask: str | None
    end: int
    processes: int

    def write(self, folder: Path) -> None:
        """Write tokens, borders and figures."""
        borders = array("q", [0])
        self.bytes, self.written = 0, 0
        try:
            count, dtype, digest = write_tokens(folder, self._parts(borders), len(self.tokenizer))
        except CannotEncode as error:
            number, why = error.args
            raise UserError(
                f"row {number} of {self.config.path!r} can not be encoded ({why}); give text in the words that the "
                "tokenizer knows"
            ) from error
        if not count:
            raise UserError(f"data.path {self.config.path!r} holds no row with a text; give data that are not empty")
        content = np.asarray(borders, "<i8").tobytes()
        (folder / BORDERS).write_bytes(content)
        digest = hashlib.sha256(digest.encode() + content).hexdigest()
        write_figures(folder, Figures(count, dtype, digest, self.bytes / max(1, self.written), 0))

    def _parts(self, borders: array[int]) -> Iterator[np.ndarray]:
        """The tokens of prompts and completions in turn, and in ``borders`` where each ends."""
        encoded = iter(encode_all(self.encoder, self._pieces(), self.processes))
        for (_, prompt), (_, completion) in zip(encoded, encoded, strict=True):
            written = self._completion(completion)
            borders.append(borders[-1] + len(prompt.ids))
            borders.append(borders[-1] + len(written))
            self.bytes += completion.text_bytes
            self.written += len(written)
            yield prompt.ids
            yield written

    def _completion(self, completion: Encoded) -> np.ndarray:
        return np.append(completion.ids, self.end) if self.config.format != "prompt_only" else completion.ids

    def _pieces(self) -> Iterator[Piece]:
        """Two a row: the prompt, and the completion, which is empty where there is none."""
        exchanges = read_exchanges(self.config, self.tokenizer)
        for number, row in enumerate(track(exchanges, f"tokenizing {self.config.path}", unit="rows"), 1):
            self._check(row)
            yield Piece("", row.prompt, number, False)
            yield Piece("", row.completion or "", number, True)

    def _check(self, row: Exchange) -> None:
        if self.mask is not None and self.mask in row.prompt:
            raise UserError(
                f"{row.place}: the prompt holds the mask token {self.mask!r}, which marks what is to be written; "
                "remove it"
            )


def _fitting(corpus: PromptedCorpus, config: DataConfig) -> PromptedCorpus:
    """The corpus without rows that are longer than ``data.length``, if they may be left out.

    Raises:
        UserError: there are such rows and they may not, or there are no others.
    """
    starts, borders, stops = corpus.borders[:-1:2], corpus.borders[1::2], corpus.borders[2::2]
    crowded = borders - starts >= config.length
    long = crowded | (stops - starts > config.length)
    if not long.any():
        return corpus
    message = _too_long(crowded, long, int((stops - starts).max()), config)
    if config.too_long == "refuse":
        raise UserError(f"{message}; set data.length to a larger number, or data.too_long to drop to leave them out")
    if long.all():
        raise UserError(f"{message}, and there are no others; set data.length to a larger number")
    if first_to_say(message):
        say(f"{message}: they are left out")
    return replace(corpus, numbers=np.flatnonzero(~long))


def _too_long(crowded: np.ndarray, long: np.ndarray, longest: int, config: DataConfig) -> str:
    """Which rows are too long, and by how much."""
    which = crowded if crowded.any() else long
    what = "have prompts that leave no room to write" if crowded.any() else "have completions too long"
    more = "" if longest < config.length else f" (the longest row has {longest} tokens)"
    return (
        f"{int(which.sum()):,} of {len(which):,} rows of {config.path!r} {what} in data.length {config.length}, the "
        f"first is row {int(np.flatnonzero(which)[0]) + 1}{more}"
    )
