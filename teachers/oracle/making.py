"""Sources by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachers.oracle import Brackets, Copies
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.markov import random_source
from teachers.oracle.templates import random_templates


def random_oracle(kind: str, seed: int, settings: Mapping[str, Any]) -> SourceDenoiser:
    """A source of random tables, or one that has none.

    Args:
        kind: of `SOURCES`. settings: what it is made of, as `fewstep oracle` names it, its length included.

    Raises:
        UserError: a value out of range.
    """
    if kind == "markov":
        return random_source(seed=seed, **settings)
    made = {"copies": Copies, "brackets": Brackets}.get(kind)
    source = random_templates(seed=seed, **settings) if made is None else made(**settings)
    return SourceDenoiser(source, settings["length"])
