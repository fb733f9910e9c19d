"""Corpora that have been tokenized: memory-mapped files in a cache, made once and shared by processes and runs.

An entry is a folder, named by a digest of the text, of the tokenizer and of what else shapes the tokens; it holds the
tokens and a few figures of them, is there whole or not at all, and may be removed at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from teachers.errors import UserError
from teachers.files import publish, remove
from teachers.source import reason

VARIABLE = "FEWSTEP_CACHE"
"""Environment variable with the cache's folder; by default ``fewstep`` in the user's cache folder (XDG)."""
TOKENS, FIGURES = "tokens.bin", "figures.json"


@dataclass(frozen=True)
class Figures:
    """What is known of a file of tokens without reading it.

    Attributes:
        tokens: how many there are.
        dtype: of the file, "uint16" or "uint32", little-endian.
        sha256: of its content.
        bytes_per_token: UTF-8 bytes of normalised text a token stands for.
        spelling: how many documents spell special tokens that were read as text.
    """

    tokens: int
    dtype: str
    sha256: str
    bytes_per_token: float
    spelling: int


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens, mapped into memory.

    Attributes:
        tokens: (N,) not writable.
        folder: the entry that they are in.
    """

    tokens: np.ndarray
    mapping: mmap.mmap
    figures: Figures
    folder: Path


def cache_folder() -> Path:
    """Where corpora are kept once they are tokenized."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser() / "corpora"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fewstep" / "corpora"


def shared_file(key: str, write: Callable[[Path], object]) -> TokenFile:
    """The cache's file of a key, written first by whichever process comes first; others wait for it.

    Args:
        write: fills the folder of a name, with `write_tokens`.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_folder() / key
    try:
        opened = open_tokens(folder)
        if opened is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(folder):
                opened = open_tokens(folder)
                if opened is None:
                    remove(folder)  # one that is not whole
                    publish(folder, write)
                    opened = open_tokens(folder)
    except OSError as error:
        raise UserError(
            f"cannot keep tokens in {folder.parent} ({reason(error)}); free some space, or set {VARIABLE} to a folder "
            "that has some"
        ) from error
    assert opened is not None
    return opened


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out, until this one is done or gone."""
    with folder.with_name(f".lock-{folder.name}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_tokens(folder: Path) -> TokenFile | None:
    """Map the tokens of an entry; None where it is not there, or not whole."""
    try:
        figures = Figures(**json.loads((folder / FIGURES).read_text("utf-8")))
        with (folder / TOKENS).open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tokens = np.frombuffer(mapping, np.dtype(figures.dtype).newbyteorder("<"))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if len(tokens) != figures.tokens:
        return None
    mapping.madvise(mmap.MADV_RANDOM)  # rows are read in a random order
    return TokenFile(tokens, mapping, figures, folder)


def write_tokens(folder: Path, parts: Iterable[np.ndarray], vocabulary: int) -> tuple[int, str, str]:
    """Write tokens as they come: how many there are, their type in the file and its digest.

    Args:
        parts: of any lengths.
        vocabulary: ids are smaller.
    """
    folder.mkdir()
    dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
    count, digest = 0, hashlib.sha256()
    with (folder / TOKENS).open("wb") as file:
        for part in parts:
            content = part.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
            count += len(part)
            digest.update(content)
            file.write(content)
    return count, dtype, digest.hexdigest()


def write_figures(folder: Path, figures: Figures) -> None:
    """Complete an entry."""
    (folder / FIGURES).write_text(json.dumps(asdict(figures), indent=1) + "\n", "utf-8")
