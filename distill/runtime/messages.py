"""What is said to a person: words on stderr as they are, never markup; a path may hold brackets, colons and escapes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# a model of bytes can write terminal escapes; line feed, tab and the return before a line feed are text
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


_silent = ContextVar("silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Within, nothing is said and no bar is drawn: for other people's programs, which have words of their own."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def is_silent() -> bool:
    """Whether nobody wants to hear anything."""
    return _silent.get()


def printable(text: str) -> str:
    """The text with its control characters replaced.

    >>> printable("one\\r\\ntwo\\x1b[31m\\tthree")
    'one\\r\\ntwo�[31m\\tthree'
    """
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def say(text: str) -> None:
    """One message on stderr."""
    if is_silent():
        return
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def warn(text: str, what: str = "warning") -> None:
    """A message under a yellow word: what to know, though the command goes on."""
    say_under(what, "33", text)


def say_error(text: str) -> None:
    """A message under a red word: why the command ends."""
    say_under("error", "31", text)


def say_under(word: str, colour: str, text: str) -> None:
    """A message after ``word:``, which is coloured (by its number among the terminal's) where a person sees it."""
    if is_silent():
        return
    heading = f"{word}:"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        heading = f"\x1b[{colour}m{heading}\x1b[0m"
    sys.stderr.write(f"{heading} {printable(text)}\n")
    sys.stderr.flush()


def write_text(text: str) -> None:
    """One text on stdout, as it is, and a line feed; a character that the stream's encoding lacks as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(f"{printable(text)}\n".encode(encoding, "backslashreplace").decode(encoding))
