"""Corpora as rows of tokens: reading, tokenizing, packing, and an order that is a pure function of (seed, position)."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.config import DataConfig, TokenizerConfig
from distill.runtime.progress import track
from teachers.errors import UserError
from teachers.source import model_folder, parse_source, read_object, reason

TEXT, JSON, PARQUET = {".txt", ".md", ".text"}, {".json", ".jsonl", ".ndjson"}, {".parquet"}
SPECIAL = {"eos_token": "<|endoftext|>", "mask_token": "<|mask|>", "pad_token": "<|pad|>"}
# a document that happens to contain "<|mask|>" contains these letters, not the token
PLAIN_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
# typographic punctuation costs three bytes a sign and says no more than its plain form
PLAIN = {"“": '"', "”": '"', "‘": "'", "’": "'", "´": "'", "`": "'", "—": "--", "–": "-", "‐": "-", "…": "..."}


def read_documents(config: DataConfig) -> Iterator[str]:
    """Yield every document of a corpus: text files (one document each), JSONL, Parquet, saved or hub datasets.

    Raises:
        UserError: missing, empty, unreadable or non-UTF-8 input, or no such column.
    """
    source = parse_source(config.path, config.revision, "dataset")
    if source.revision is not None:
        yield from _read_hub(source.path, source.revision, config)
        return
    path = Path(source.path)
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        import datasets

        _check_saved(path)
        try:
            table = datasets.load_from_disk(str(path))
            for part in table.values() if isinstance(table, dict) else [table]:
                part.data.table.validate(full=True)  # Arrow trusts the offsets in a file
        except Exception as error:  # a dozen types for what is one thing: unreadable
            raise UserError(
                f"cannot read {path} as a saved dataset ({reason(error)}); check that the folder is whole"
            ) from error
        yield from _column(table, config)
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in TEXT | JSON | PARQUET)
        if not files:
            raise UserError(f"data.path {config.path!r} holds no .txt, .jsonl or .parquet file; name a corpus file")
        for file in files:
            yield from _read_file(file, config)
    elif path.is_file():
        yield from _read_file(path, config)
    else:
        raise UserError(
            f"data.path {config.path!r} does not exist; give a text, JSONL or Parquet file, or a dataset's hub name "
            "with its commit (org/name@<40 hex digits>)"
        )


def _read_file(path: Path, config: DataConfig) -> Iterator[str]:
    """One text, JSON or Parquet file, read here: `datasets` would copy it first, and a damaged one can crash it."""
    try:
        if path.suffix in JSON:
            yield from _read_json(path, config)
        elif path.suffix in PARQUET:
            yield from _read_parquet(path, config)
        else:
            yield codecs.decode(path.read_bytes(), "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start} of what was read; "
            "convert it, e.g. with iconv -t utf-8"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}; check the path, its permissions and content") from error


def _read_json(path: Path, config: DataConfig) -> Iterator[str]:
    """JSON lines, or one array of objects."""
    with path.open(encoding="utf-8-sig") as file:
        is_array = next((line for line in file if line.strip()), "").lstrip().startswith("[")
        file.seek(0)
        for number, text in enumerate([file.read()] if is_array else file, 1):
            if not text.strip():
                continue
            try:
                rows = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"cannot read {path} as json (line {number}: {reason(error)}); it must hold one object a line, or "
                    "an array of objects"
                ) from error
            for row in rows if is_array else [rows]:
                if not isinstance(row, dict):
                    raise UserError(f"{path} holds {type(row).__name__} in line {number}; each row must be an object")
                _check_column(list(row), config)
                yield _text(row[config.text_column], config)


def _read_parquet(path: Path, config: DataConfig) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        _check_column(file.schema_arrow.names, config)
        for batch in file.iter_batches(columns=[config.text_column]):
            batch.validate(full=True)
            for document in batch.column(0).to_pylist():
                yield _text(document, config)
    except (pyarrow.ArrowException, pyarrow.lib.ArrowNotImplementedError, OverflowError) as error:
        raise UserError(f"cannot read {path} as parquet ({reason(error)}); check that the file is whole") from error


def _check_saved(folder: Path) -> None:
    """Refuse a saved dataset whose lists name files outside its folder.

    Raises:
        UserError: such a name, or a list that cannot be read.
    """
    folders = [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = read_object(folder / "dataset_dict.json").get("splits")
        folders = [folder / name for name in _plain_names(splits, folder / "dataset_dict.json")]
    for part in folders:
        files = read_object(part / "state.json").get("_data_files")
        names = [f.get("filename") for f in files if isinstance(f, dict)] if isinstance(files, list) else None
        _plain_names(names, part / "state.json")


def _plain_names(names: Any, named_in: Path) -> list[str]:
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"{named_in} names {name!r}, which is not in its folder; save the dataset again")
    return names


def _read_hub(name: str, commit: str, config: DataConfig) -> Iterator[str]:
    import datasets

    try:
        table = datasets.load_dataset(name, revision=commit, split=config.split)
    except Exception as error:
        raise UserError(
            f"cannot load dataset {config.path!r} ({reason(error)}); check name, commit, split and connection"
        ) from error
    yield from _column(table, config)


def _column(table: Any, config: DataConfig) -> Iterator[str]:
    from datasets import DatasetDict

    if isinstance(table, DatasetDict):
        if config.split not in table:
            raise UserError(f"data.split {config.split!r} is not in {config.path!r}; it has {', '.join(table)}")
        table = table[config.split]
    _check_column(table.column_names, config)
    for document in table[config.text_column]:
        yield _text(document, config)


def _check_column(columns: list[str], config: DataConfig) -> None:
    if config.text_column not in columns:
        raise UserError(
            f"data.text_column {config.text_column!r} is not in {config.path!r}; its columns are {', '.join(columns)}"
        )


def _text(document: Any, config: DataConfig) -> str:
    if not isinstance(document, str):
        raise UserError(
            f"column {config.text_column!r} of {config.path!r} holds {type(document).__name__}, not text; "
            "set data.text_column to a column of strings"
        )
    try:
        document.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise UserError(
            f"a document of {config.path!r} has {document[error.start]!r}, half of a character; remove it"
        ) from error
    return document


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
        text_bytes += len(_normalised(tokenizer, document).encode())
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


def _normalised(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.normalizer.normalize_str(text) if backend is not None and backend.normalizer is not None else text


def train_tokenizer(config: TokenizerConfig, data: DataConfig) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a corpus. The smallest vocabulary, 259, is the 256 bytes and three special tokens."""
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
    tokenizer.train_from_iterator(read_documents(data) if needs_text else [], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=data.length, **SPECIAL)


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a pinned hub name or ``bundled:NAME``; never remote code."""
    folder = model_folder(name, revision)
    try:
        # said outright, because transformers would ask on the terminal
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
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
