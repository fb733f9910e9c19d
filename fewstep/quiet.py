"""The facade says nothing: words are the calling program's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distill.runtime.messages import silence
from teachers.quiet import quiet_transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Within, neither we nor transformers print a word or draw a bar."""
    with silence(), quiet_transformers():
        yield
