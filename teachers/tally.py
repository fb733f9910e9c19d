"""How many sequences a network has been sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Tally:
    """Counts the sequences that go through a network: one for each row of each forward pass.

    A network's repetition of blocks in a backward pass is none.

    Attributes:
        passes: so far.
    """

    def __init__(self) -> None:
        self.passes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Tally:
        """A copy of a network has been sent nothing yet."""
        return Tally()

    def add(self, rows: int) -> None:
        """Count one forward pass over so many rows."""
        self.passes += rows

    @contextmanager
    def lent_to(self, other: Tally) -> Iterator[None]:
        """While entered, what is counted here counts there: a network computes for another one, which it carries."""
        before = self.passes
        try:
            yield
        finally:
            other.passes += self.passes - before
            self.passes = before


def passes_of(networks: Iterable[nn.Module]) -> int:
    """Sequences sent through networks and the denoisers within them, each counted once."""
    tallies = {id(tally): tally for network in networks for module in network.modules() if (tally := _of(module))}
    return sum(tally.passes for tally in tallies.values())


def _of(module: nn.Module) -> Tally | None:
    tally = module.__dict__.get("tally")
    return tally if isinstance(tally, Tally) else None
