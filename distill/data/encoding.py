"""Text into tokens in batches and several processes, long documents in pieces that give the same tokens.

This file is also what the other processes run; it imports nothing that takes time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from itertools import chain, islice
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

PIECE = 1 << 16
"""Characters of a longer document that are tokenized in one call [own]."""
WINDOW = 256
"""Characters on either side of a cut that are tokenized to see whether it changes anything [own]."""
TRIES = 8
BATCH = 1 << 18
"""Characters that a process gets at a time: a token of a byte each, they take a hundred megabytes there [own]."""
WORTH_IT = 16
"""Batches from which on other processes are started: each takes a fifth of a second to begin [own]."""


@dataclass(frozen=True)
class Piece:
    """Part of a document, or all of it.

    Attributes:
        before: the text in front of it that the tokenizer has to see; its tokens belong to the piece before.
        document: its number, from 1.
        ends: whether the document ends with it.
    """

    before: str
    text: str
    document: int
    ends: bool


@dataclass(frozen=True)
class Encoded:
    """The tokens of a piece.

    Attributes:
        ids: (N,) int32.
        text_bytes: UTF-8 bytes of normalised text, without the special tokens that it spells where those are tokens.
        text_tokens: how many of the ids stand for that text.
        spells: whether the text spells a special token that is read as text.
    """

    ids: np.ndarray
    text_bytes: int
    text_tokens: int
    spells: bool


class CannotEncode(ValueError):
    """A tokenizer has no tokens for a text. The document's number, and why."""


class Encoder(ABC):
    """A tokenizer, and what a text is to it that spells a special token.

    Args:
        special: {text: id} of special tokens that are tokens where a text spells them.
        plain: those that are letters.
    """

    def __init__(self, special: dict[str, int], plain: list[str]):
        self._special_ids = list(special.values())
        self._special, self._plain = _any_of(special), _any_of(plain)

    @abstractmethod
    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text by itself."""

    @abstractmethod
    def normalised(self, text: str) -> str:
        """The text that is made tokens of, e.g. with plain punctuation."""

    def encode(self, pieces: list[Piece]) -> list[Encoded]:
        """The tokens of some pieces.

        Raises:
            CannotEncode: there are none.
        """
        encoded = self._checked_ids(pieces, [piece.before + piece.text for piece in pieces])
        before = iter(self._checked_ids(pieces, [piece.before for piece in pieces if piece.before]))
        return [
            self._encoded(piece, np.asarray(ids[len(next(before)) :] if piece.before else ids, np.int32))
            for piece, ids in zip(pieces, encoded, strict=True)
        ]

    def _checked_ids(self, pieces: list[Piece], texts: list[str]) -> list[list[int]]:
        try:
            return self.ids(texts)
        except Exception:  # tokenizers raises the bare type, and does not say which text it was
            for piece in pieces:
                try:
                    self.ids([piece.before + piece.text])
                except Exception as error:
                    raise CannotEncode(piece.document, " ".join(str(error).split())[:200]) from error
            raise

    def _encoded(self, piece: Piece, ids: np.ndarray) -> Encoded:
        text, text_tokens = piece.text, len(ids)
        if self._special is not None:
            text = self._special.sub("", text)
            text_tokens -= int(np.isin(ids, self._special_ids).sum())
        return Encoded(
            ids,
            len(self.normalised(piece.before + text).encode()) - len(self.normalised(piece.before).encode()),
            text_tokens,
            self._plain is not None and self._plain.search(piece.text) is not None,
        )

    def cut(self, text: str, first: int, last: int) -> tuple[int, str] | None:
        """A place between two positions where a text may be cut without changing its tokens, and what to put before.

        Candidates are line ends, then word ends. At each, the text around it is tokenized in one call and in two: where
        that gives the same tokens it may be cut. A tokenizer that begins every text with a space of its own is shown
        the last letters before the cut again.
        """
        for place in _candidates(text, first, last):
            left, right = text[max(0, place - WINDOW) : place], text[place : place + WINDOW]
            for before in ("", left[-WINDOW // 4 :]):
                whole, start, again, seen = self.ids([left + right, left, before + right, before])
                if whole == start + again[len(seen) :] and again[: len(seen)] == seen:
                    return place, before
        return None


class FastEncoder(Encoder):
    """A tokenizer of the ``tokenizers`` library, which can be rebuilt in another process.

    Args:
        definition: its JSON; added tokens that it calls special are letters where a text spells them, all others not.
    """

    def __init__(self, definition: str, special: dict[str, int]):
        plain = [token["content"] for token in json.loads(definition)["added_tokens"] if token["special"]]
        super().__init__(special, plain)
        self.definition, self.special = definition, special
        self._tokenizer = Tokenizer.from_str(definition)
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def of(cls, backend: Tokenizer, as_tokens: bool, mask: str | None) -> FastEncoder:
        """Read a tokenizer.

        Args:
            as_tokens: special tokens that a text spells are tokens.
            mask: is letters where a text spells it, whatever the tokenizer says.
        """
        definition = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        special = {}
        for token in definition["added_tokens"]:
            if token["content"] == mask:
                token["special"] = True
            elif as_tokens and token["special"]:
                token["special"] = False
                special[token["content"]] = token["id"]
        return cls(json.dumps(definition), special)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder.ids`."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def normalised(self, text: str) -> str:
        """See `Encoder.normalised`."""
        return self._tokenizer.normalizer.normalize_str(text) if self._tokenizer.normalizer is not None else text


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


# --- cutting -------------------------------------------------------------------------------------------------------

LINE_END = re.compile(r"(?<=\S\n)(?=\S)")
WORD_END = re.compile(r"(?<=\w)(?=\s)|(?<=[^\w\s])(?=\w)")


def _candidates(text: str, first: int, last: int) -> Iterator[int]:
    for pattern in (LINE_END, WORD_END):
        yield from (match.start() for match in islice(pattern.finditer(text, first, last), TRIES))


def first_candidate(text: str, first: int, last: int) -> tuple[int, str] | None:
    """A cut that needs no look: GPT-2's pre-tokenizer cuts at every candidate."""
    return next(((place, "") for place in _candidates(text, first, last)), None)


Cut = Callable[[str, int, int], tuple[int, str] | None]


def pieces(chunks: Iterable[tuple[str, bool]], cut: Cut) -> Iterator[Piece]:
    """Cut documents into pieces of about `PIECE` characters; blank documents are left out.

    Args:
        chunks: text, and whether a document ends with it.
        cut: see `Encoder.cut`.
    """
    text, before, document, start, look, begun = "", "", 0, 0, PIECE, False
    for more, ends in chunks:
        text, start = text[start:] + more, 0
        if not begun:
            if not text.strip():
                text = "" if ends else text
                continue
            begun, document = True, document + 1
        while look + WINDOW <= len(text) - start:
            place = cut(text, start + look, len(text) - WINDOW)
            if place is None:
                look += PIECE
                continue
            yield Piece(before, text[start : place[0]], document, False)
            (start, before), look = place, PIECE
        if ends:
            yield Piece(before, text[start:], document, True)
            text, before, start, look, begun = "", "", 0, PIECE, False


# --- several processes ---------------------------------------------------------------------------------------------


def encode_all(encoder: Encoder, items: Iterable[Piece], processes: int) -> Iterator[tuple[Piece, Encoded]]:
    """The tokens of all pieces, in their order, made by this process or, of a large corpus, by others.

    Raises:
        CannotEncode: see `Encoder.encode`.
    """
    batches = _batches(items)
    first = list(islice(batches, WORTH_IT))
    if processes == 1 or len(first) < WORTH_IT or not isinstance(encoder, FastEncoder):
        for batch in chain(first, batches):
            yield from zip(batch, encoder.encode(batch), strict=True)
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(encoder)) for _ in range(processes)]
        pending: deque[tuple[list[Piece], Future[list[Encoded]]]] = deque()
        for number, batch in enumerate(chain(first, batches)):
            pending.append((batch, workers[number % processes].submit(batch)))
            if len(pending) > 2 * processes:
                yield from _finished(pending)
        while pending:
            yield from _finished(pending)


def _finished(pending: deque[tuple[list[Piece], Future[list[Encoded]]]]) -> Iterator[tuple[Piece, Encoded]]:
    batch, encoded = pending.popleft()
    return zip(batch, encoded.result(), strict=True)


def _batches(items: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in items:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Worker:
    """A process that tokenizes, and the thread that talks to it.

    It is a process of its own rather than one of `multiprocessing`: a fork would copy this process's threads' locks,
    and the others would run the caller's script again. It ends when this process does, since its input then ends.
    """

    def __init__(self, encoder: FastEncoder):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._send, [encoder.definition, encoder.special])

    def submit(self, batch: list[Piece]) -> Future[list[Encoded]]:
        """Tokenize a batch, after those before it."""
        return self._thread.submit(self._answer, batch)

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        send_line(self._process.stdin, value)
        self._process.stdin.flush()

    def _answer(self, batch: list[Piece]) -> list[Encoded]:
        assert self._process.stdout is not None
        try:
            self._send([astuple(piece) for piece in batch])
            return receive_encoded(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise ChildProcessError("a process that tokenizes has gone; is there memory for all?") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._process.communicate()


def send_line(target: IO[bytes], value: Any) -> None:
    """Write a value as a line of JSON."""
    target.write(json.dumps(value).encode() + b"\n")


def receive_line(source: IO[bytes]) -> Any:
    """Read what `send_line` wrote.

    Raises:
        EOFError: nothing more comes.
    """
    line = source.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def send_encoded(target: IO[bytes], encoded: list[Encoded]) -> None:
    """Write the tokens of some pieces: a line that says how many, then the tokens as they lie in memory."""
    send_line(target, [[len(one.ids), one.text_bytes, one.text_tokens, one.spells] for one in encoded])
    for one in encoded:
        target.write(one.ids.tobytes())


def receive_encoded(source: IO[bytes]) -> list[Encoded]:
    """Read what `send_encoded` wrote.

    Raises:
        CannotEncode: that is what came in its place.
        EOFError: it did not come whole.
    """
    header = receive_line(source)
    if isinstance(header, dict):
        raise CannotEncode(*header["cannot encode"])
    encoded = []
    for count, text_bytes, text_tokens, spells in header:
        ids = source.read(count * np.dtype(np.int32).itemsize)
        if len(ids) < count * np.dtype(np.int32).itemsize:
            raise EOFError
        encoded.append(Encoded(np.frombuffer(ids, np.int32), text_bytes, text_tokens, spells))
    return encoded


def work() -> None:
    """Tokenize what comes on stdin until it ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may come between the answers
    encoder = FastEncoder(*receive_line(source))
    while True:
        try:
            batch = [Piece(*values) for values in receive_line(source)]
        except EOFError:
            return
        try:
            send_encoded(target, encoder.encode(batch))
        except CannotEncode as error:
            send_line(target, {"cannot encode": error.args})
        target.flush()


if __name__ == "__main__":
    work()
