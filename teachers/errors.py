"""The one exception type meant for people."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    The message is one line: the offending value, what is allowed, and the remedy. The command line prints it without a
    traceback and exits with code 2. What it quotes may hold anything, so line breaks, terminal escapes and lone
    surrogates are written out.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def nearest(name: str, allowed: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or an empty string when none is close."""
    import difflib

    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
