"""What is read and written: rows of tokens, which of them are open, and which are padding.

A prompt, a suffix, the context of an infilling, padding on the left or on the right: all are a canvas. Rows of masks
alone are the simplest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.host import learned, part_of, tell
from teachers.positions import positions, sent


@dataclass(frozen=True)
class Rows:
    """Fields whose first dimension is the rows: tensors, and others such as this; None where there is nothing."""

    def rows(self, part: Tensor | slice, whole: bool = False) -> Self:
        """Some of the rows: by index, mask or slice.

        Args:
            whole: ``part`` is an index of all rows, each of them equally often, blocks of all texts in the same order.
        """
        return self._mapped(lambda tensor: part_of(tensor, part), lambda inner: inner.rows(part, whole))

    def rows_where(self, chosen: Tensor) -> Self:
        """The rows at which ``chosen`` (B,) is True; these themselves where it is so at all."""
        part = positions(chosen)
        return self if len(part) == len(chosen) else self.rows(part)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._mapped(lambda tensor: sent(tensor, device), lambda inner: inner.to(device))

    def _mapped(self, function: Callable[[Tensor], Tensor], within: Callable[[Rows], Rows]) -> Self:
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, Rows):
                changed[field.name] = within(value)
        return replace(self, **changed)


@dataclass(frozen=True)
class Context(Rows):
    """What each token of a canvas may look at while a network learns, where `DenoiserSpec.attention` is not all of it.

    Attributes:
        documents: (B, L) int64, the number of each token's document, counted from left to right: it looks at no other,
            and positions start again in each. None: a row is one document.
        opened: (B, L, L) bool, which later tokens each looks at beside all earlier ones; None: all.
        blocks: (B, L) int64, the number of each token's block, counted from left to right and starting again nowhere:
            it looks at its own and at earlier ones. None: there are none.
        clean: (B, L) int64, for blocks: a token reads its own block as it is on the canvas, and earlier ones as they
            are here. None: all as it is on the canvas.
    """

    documents: Tensor | None = None
    opened: Tensor | None = None
    blocks: Tensor | None = None
    clean: Tensor | None = None


@dataclass(frozen=True)
class Prefix(Rows):
    """The clean text that is read before the rows of a canvas, each of which is one block of a text.

    Nothing is behind a block. The rows of a text are read in one pass where a network's attention allows it
    (teachers/prefix.py).

    Attributes:
        text: (B, T) int64, the text of each row, T tokens; those before the row's block are read, and no others.
        block: (B,) int64, which block of its text a row is, from 0: with L tokens a row, it begins at block · L.
        owner: (B,) int64, the number of its text: rows with the same number are blocks of the same text.
        texts: how many these are, where all their blocks are here, each equally often: so much of the values is known
            from the shapes alone. None where it is not known.
    """

    text: Tensor
    block: Tensor
    owner: Tensor
    texts: int | None = None

    def rows(self, part: Tensor | slice, whole: bool = False) -> Prefix:
        """See `Rows.rows`; of whole texts side by side, a slice of some is of whole ones too."""
        cut = super().rows(part, whole)
        if whole or self.texts is None:
            return cut
        return replace(cut, texts=cut._whole_texts(len(self.owner) // self.texts) if isinstance(part, slice) else None)

    def _whole_texts(self, each: int) -> int | None:
        """How many texts there are, where each has so many rows side by side; else None."""
        _, counts = learned(self.owner)[0].unique_consecutive(return_counts=True)
        return len(counts) if bool((counts == each).all()) else None


@dataclass(frozen=True)
class Canvas(Rows):
    """B rows of L tokens, some of them still to be written.

    Attributes:
        tokens: (B, L) int64; an open position holds the mask, or what the start put there.
        open: (B, L) bool, what is still to be written.
        real: (B, L) bool, False where a token is padding; None where none is.
        time: (B,) t of the noise process, for whoever knows it; None to have it read off the open share.
        context: what tokens may look at, in training; None: what the denoiser's `spec` says.
        prefix: the text before each row, where rows are blocks of texts; None where they are whole ones.
    """

    tokens: Tensor
    open: Tensor
    real: Tensor | None = None
    time: Tensor | None = None
    context: Context | None = None
    prefix: Prefix | None = None

    @staticmethod
    def blank(rows: int, length: int, mask_id: int, device: torch.device | str = "cpu") -> Canvas:
        """Rows of masks alone, all of it open."""
        tokens = torch.full((rows, length), mask_id, device=device)
        canvas = Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool))
        tell(canvas.tokens, torch.tensor(mask_id).expand(rows, length))
        tell(canvas.open, torch.tensor(True).expand(rows, length))
        return canvas

    @staticmethod
    def of(tokens: Tensor, mask_id: int, real: Tensor | None = None, time: Tensor | None = None) -> Canvas:
        """Rows (B, L) that are open where they hold the mask, but for padding."""
        masked = tokens == mask_id
        return Canvas(tokens, masked if real is None else masked & real, real, time)

    @staticmethod
    def prompted(
        prompts: Sequence[Sequence[int]],
        length: int,
        mask_id: int,
        suffixes: Sequence[Sequence[int]] | None = None,
        pad_id: int | None = None,
        padding: Literal["none", "left", "right"] = "none",
        multiple: int = 1,
    ) -> Canvas:
        """Prompts of different lengths in one canvas, each with an open part after it.

        Args:
            prompts: the tokens of each row's prompt.
            length: with padding "none", tokens of a whole row, prompt and suffix included, so that a longer prompt
                leaves less to write; else tokens to write in every row, the rows being padded on that side.
            suffixes: the tokens that follow each row's open part.
            pad_id: fills padded positions; the mask where there is no such token. Nobody reads it.
            multiple: padding on the left comes in so many columns, what is over being on the right: a block, for
                block attention that counts columns (`Denoiser.columns`).

        Raises:
            UserError: a row has no room to write in.
        """
        suffixes = [[] for _ in prompts] if suffixes is None else suffixes
        given = [len(prompt) + len(suffix) for prompt, suffix in zip(prompts, suffixes, strict=True)]
        width = length if padding == "none" else max(given, default=0) + length
        tokens = torch.full((len(prompts), width), mask_id if pad_id is None else pad_id)
        open_, real = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
        for row, (prompt, suffix) in enumerate(zip(prompts, suffixes, strict=True)):
            write = length - given[row] if padding == "none" else length
            if write < 1:
                raise UserError(
                    f"prompt {row + 1} has {given[row]} tokens and the canvas {length}, which leaves none to write; "
                    "give a shorter prompt or a longer canvas"
                )
            values = [*prompt, *[mask_id] * write, *suffix]
            start = (width - len(values)) // multiple * multiple if padding == "left" else 0
            tokens[row, start : start + len(values)] = torch.tensor(values)
            open_[row, start + len(prompt) : start + len(prompt) + write] = True
            real[row, start : start + len(values)] = True
        return Canvas(tokens, open_, None if bool(real.all()) else real)

    def __len__(self) -> int:
        """B."""
        return len(self.tokens)

    @property
    def length(self) -> int:
        """L."""
        return self.tokens.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.tokens.device

    def open_share(self) -> Tensor:
        """(B,) float64, the part of each row's tokens that is open; padding does not count."""
        tokens = self.length if self.real is None else self.real.sum(1).clamp(min=1)
        return self.open.double().sum(1) / tokens

    def position_ids(self) -> Tensor | None:
        """(B, L) the place of each token among its document's real ones; None where it is that in the row.

        Padding has some place as well, 0 in front of a row's first token: nobody reads it.
        """
        if self.context is not None and self.context.documents is not None:
            return places(self.context.documents)
        if self.real is None:
            return None
        return (self.real.long().cumsum(1) - 1).clamp(min=0)


def places(documents: Tensor) -> Tensor:
    """(B, L) the place of each token within its document, from the documents' numbers (B, L)."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values


@dataclass(frozen=True)
class Batch(Rows):
    """What an update of training is given: a canvas, and what is known of the text behind it.

    Attributes:
        canvas: what a rollout fills; open everywhere but at prompts, suffixes and padding.
        labels: (B, L) clean tokens, prompts included, where there is text.
        order: (B, L) the pass, from 0, at which the teacher unmasked each position, where an objective asks for it.
    """

    canvas: Canvas
    labels: Tensor | None = None
    order: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.canvas)
