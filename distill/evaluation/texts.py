"""Rows of tokens to be measured, and which of their tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachers.canvas import Canvas


@dataclass(frozen=True)
class Texts:
    """N texts.

    Attributes:
        tokens: (N, L) int64.
        written: (N, L) bool, what is measured, given all before it; None: everything.
    """

    tokens: Tensor
    written: Tensor | None = None

    @staticmethod
    def on(canvas: Canvas | None, tokens: Tensor, ends: Sequence[int]) -> Texts:
        """Rows (N, L) that were written on a canvas: of each, what was open up to its first end token, that included.

        What follows is another text, or nothing.

        Args:
            canvas: None for rows of masks alone, all of which is measured.
        """
        if canvas is None:
            return Texts(tokens)
        ended = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype)) & canvas.open
        after = ended.cumsum(1) - ended.long()  # end tokens before each position
        return Texts(tokens, canvas.open & (after == 0))

    @property
    def size(self) -> int:
        """Tokens that are measured."""
        return self.tokens.numel() if self.written is None else int(self.written.sum())

    def rows(self, part: slice) -> Texts:
        """Some of the texts."""
        return Texts(self.tokens[part], None if self.written is None else self.written[part])

    def sequences(self) -> list[np.ndarray]:
        """What is measured of each text, one token after the other."""
        rows = self.tokens.numpy()
        if self.written is None:
            return list(rows)
        return [row[written] for row, written in zip(rows, self.written.numpy(), strict=True)]
