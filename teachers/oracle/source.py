"""The contract of a law of rows, all of whose probabilities can be computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.randomness import Randomness

Argument = Tensor | int | float


class Tables(nn.Module):
    """Float64 buffers, which keep their type."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the tables, but never cast them: in bfloat16 it would be another source."""
        tables = {name: table for name, table in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self


class Source(Tables, ABC):
    """A law of rows of the tokens 0 … T−1; every row has a positive probability.

    Attributes:
        kind: its name in config.json and on the command line.
        tokens: T.
        row_length: L, of the rows it is a law of; None where they may have any length.
    """

    kind: ClassVar[str]
    tokens: int
    row_length: int | None = None

    @abstractmethod
    def posteriors(self, evidence: Tensor) -> Tensor:
        """p(x_l | what is known of the row) at every position.

        Args:
            evidence: (B, L, T) float64; of each position, 1 for all tokens where it is unknown, or for one.

        Returns:
            (B, L, T) float64 probabilities.
        """

    @abstractmethod
    def draw(self, rows: int, length: int, generator: Randomness) -> Tensor:
        """Exact draws: (rows, L) int64 of 0 … T−1."""

    @abstractmethod
    def log_prob(self, rows: Tensor) -> Tensor:
        """log p of whole rows (B, L): (B,) float64 nats."""

    @abstractmethod
    def entropy(self, length: int) -> float:
        """Exact entropy of a row, in nats."""

    @abstractmethod
    def arguments(self) -> dict[str, Argument]:
        """What its class makes it of, by name: tables and numbers."""

    def words(self) -> list[str] | None:
        """What its tokens are written as; None where they mean nothing."""
        return None

    def description(self, length: int) -> str:
        """A few words on what it is like, for people."""
        return f"{self.kind}, {self.tokens} tokens"

    @property
    def size(self) -> int:
        """Numbers that make up the law."""
        return sum(value.numel() if isinstance(value, Tensor) else 1 for value in self.arguments().values())

    def check_length(self, length: int) -> None:
        """Refuse rows of a length that it does not write.

        Raises:
            UserError: it writes others.
        """
        if self.row_length not in (None, length):
            raise UserError(
                f"rows have {length} tokens, and this source of {self.kind} is a law of rows of {self.row_length}; "
                f"set length (or evaluate.length) to {self.row_length}, or write a source of {length} tokens"
            )


def check_share(name: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    """Refuse a probability that leaves some rows impossible, or all alike.

    Raises:
        UserError: it is not between ``low`` and ``high``.
    """
    if not low < value < high:
        raise UserError(f"{name} is {value}; it must be more than {low:g} and less than {high:g}")


def check_count(name: str, value: int, least: int, most: int) -> None:
    """Refuse a number that is too small or too large.

    Raises:
        UserError: it is not from ``least`` to ``most``.
    """
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be from {least} to {most}")


def normalised(weights: Tensor) -> Tensor:
    """(…, N) weights with a sum of 1 over the last dimension."""
    return weights / weights.sum(-1, keepdim=True)


def one_hot(rows: Tensor, tokens: int) -> Tensor:
    """(B, L) tokens as evidence: (B, L, T) float64."""
    return torch.nn.functional.one_hot(rows, tokens).double()
