"""How long a text will be, found out before it is written: the ``length:`` part of a sampler's settings.

A masked diffusion model writes into a canvas whose length is given. One that learned rows with a tail of end tokens
says with its first pass where texts end: P(an end token at position i) is the chance that the text is no longer than
that. `Predicted` reads this profile, in one pass or two; DAEDAL (2508.00819) grows the canvas pass by pass until its
end looks like one.

A canvas is given as long as a text may be at most; its rows are cut, and what was cut off is filled with end tokens
when the text is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser, end_ids
from teachers.errors import UserError
from teachers.section import Section


@dataclass(frozen=True)
class Sized:
    """Rows that are as long as their texts will be.

    Attributes:
        canvas: (B, L) as it was given, padded on the right where a text will be shorter.
        nfe: (B,) int64, passes that finding it out took.
    """

    canvas: Canvas
    nfe: Tensor


class Profile(NamedTuple):
    """What one pass says of where texts end.

    Attributes:
        ends: (R, L) float32, at open positions the probability of an end token; 0 elsewhere.
        likely: (R, L) bool, where an end token is the most probable one.
    """

    ends: Tensor
    likely: Tensor


class Length(Section, ABC):
    """A way to find out how many tokens texts need."""

    name: str

    def sized(self, denoiser: Denoiser, canvas: Canvas) -> Sized:
        """Cut rows to the length that their texts need.

        Args:
            canvas: rows as long as texts may be at most, which are open from some place on to their end.

        Raises:
            UserError: no token ends a text, or something follows what is to be written.
        """
        if not end_ids(denoiser):
            raise UserError("sampler.length looks for where texts end, and the model has no end token; leave it out")
        begins, most = canvas.open.int().argmax(1), row_ends(canvas)
        if bool((canvas.open.sum(1) != most - begins).any()):
            raise UserError("sampler.length finds out where a text ends, and in this canvas something follows it")
        return self.cut(denoiser, canvas, begins, most)

    @abstractmethod
    def cut(self, denoiser: Denoiser, canvas: Canvas, begins: Tensor, most: Tensor) -> Sized:
        """See `sized`. ``begins``, ``most``: (B,) the columns between which each row is open."""


class Predicted(Length):
    """[own] The length that is enough for a text with some probability, read off the profile of a single pass.

    Attributes:
        enough: the probability.
        start: tokens of the canvas that is tried first; only where a text does not end in it is the longest one asked
            as well. None to ask that one at once.
    """

    name: Literal["predicted"] = "predicted"
    enough: float = Field(default=0.9, gt=0, lt=1)  # [own]
    start: int | None = Field(default=None, ge=1)  # [own]

    def cut(self, denoiser: Denoiser, canvas: Canvas, begins: Tensor, most: Tensor) -> Sized:
        """See `Length.cut`."""
        ends = most if self.start is None else torch.minimum(begins + self.start, most)
        nfe, rows = torch.zeros_like(begins), torch.arange(len(canvas), device=canvas.device)
        while len(rows):
            tried = ends[rows]
            sure = profile(denoiser, shortened(canvas.rows(rows), tried)).ends >= self.enough
            nfe[rows] += 1
            found = sure.any(1)  # the first place that is sure to lie behind the text; or else the longest canvas
            ends = ends.index_copy(0, rows, torch.where(found, sure.int().argmax(1) + 1, most[rows]))
            rows = rows[~found & (tried < most[rows])]
        return Sized(shortened(canvas, ends), nfe)


class Grown(Length):
    """DAEDAL's first phase (2508.00819): the canvas grows pass by pass, until its last tokens look like an end.

    Attributes:
        start: tokens to write at first. step: by which the canvas grows.
        window: how many of the most likely ends are looked at, from the right; their probabilities' sum over this many
            is the confidence in the length.
        enough: confidence that is enough.
        closing: end tokens that follow the canvas.
    """

    name: Literal["grown"] = "grown"
    start: int = Field(default=64, ge=1)  # [paper]
    step: int = Field(default=8, ge=1)  # [paper]
    window: int = Field(default=32, ge=1)  # [paper]
    enough: float = Field(default=0.5, gt=0, lt=1)  # [paper]
    closing: int = Field(default=16, ge=0)  # [code]

    def cut(self, denoiser: Denoiser, canvas: Canvas, begins: Tensor, most: Tensor) -> Sized:
        """See `Length.cut`."""
        ends, nfe = torch.minimum(begins + self.start, most), torch.zeros_like(begins)
        rows = (ends < most).nonzero().squeeze(1)
        while len(rows):
            confidence = end_confidence(profile(denoiser, shortened(canvas.rows(rows), ends[rows])), self.window)
            nfe[rows] += 1
            rows = rows[confidence < self.enough]
            ends[rows] = torch.minimum(ends[rows] + self.step, most[rows])
            rows = rows[ends[rows] < most[rows]]
        return Sized(self._closed(denoiser, canvas, ends, most), nfe)

    def _closed(self, denoiser: Denoiser, canvas: Canvas, ends: Tensor, most: Tensor) -> Canvas:
        sized = shortened(canvas, torch.minimum(ends + self.closing, most))
        closing = sized.open & (torch.arange(canvas.length, device=canvas.device) >= ends[:, None])
        tokens = sized.tokens.masked_fill(closing, end_ids(denoiser)[0])
        return replace(sized, tokens=tokens, open=sized.open & ~closing)


AnyLength = Annotated[Predicted | Grown, Field(discriminator="name")]


def row_ends(canvas: Canvas) -> Tensor:
    """(B,) the column behind each row's last token that is no padding."""
    if canvas.real is None:
        return torch.full((len(canvas),), canvas.length, device=canvas.device)
    return canvas.length - canvas.real.flip(1).int().argmax(1)


def shortened(canvas: Canvas, ends: Tensor) -> Canvas:
    """Rows that end before the columns ``ends`` (B,); padding follows."""
    real = torch.arange(canvas.length, device=canvas.device) < ends[:, None]
    if canvas.real is not None:
        real &= canvas.real
    return replace(canvas, open=canvas.open & real, real=real)


def trimmed(canvas: Canvas) -> Canvas:
    """The same without the columns on the right that are padding in every row."""
    width = max(row_ends(canvas).tolist(), default=0)
    real = None if canvas.real is None or bool(canvas.real[:, :width].all()) else canvas.real[:, :width]
    return replace(canvas, tokens=canvas.tokens[:, :width], open=canvas.open[:, :width], real=real)


def restored(written: Canvas, canvas: Canvas, end: int) -> Canvas:
    """Rows as long as those of ``canvas`` again: what was cut off is end tokens."""
    tokens, open_, width = canvas.tokens.masked_fill(canvas.open, end), torch.zeros_like(canvas.open), written.length
    real = torch.ones_like(written.open) if written.real is None else written.real
    tokens[:, :width] = torch.where(real, written.tokens, tokens[:, :width])
    open_[:, :width] = written.open
    return replace(canvas, tokens=tokens, open=open_)


def profile(denoiser: Denoiser, canvas: Canvas) -> Profile:
    """One pass: where texts end, at the open positions."""
    inner = trimmed(canvas)
    p, likely = ends_of(denoiser, denoiser.features(inner, inner.open))
    return Profile(scatter(p, canvas.open), scatter(likely, canvas.open))


def ends_of(denoiser: Denoiser, features: Tensor) -> tuple[Tensor, Tensor]:
    """Of N positions, the probability of an end token, and whether one is the most probable token: (N,) each."""
    ends = torch.tensor(end_ids(denoiser), device=features.device)

    def said(part: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = denoiser.head(part)
        return log_probs[:, ends].exp().sum(-1), torch.isin(log_probs.argmax(-1), ends)

    p, likely = in_chunks(said, chunk_count(len(features), denoiser.spec.vocabulary), features)
    return p, likely


def end_confidence(profile: Profile, window: int) -> Tensor:
    """(R,) DAEDAL's confidence in a length: Σ p(end) over the last positions where ends are likely, over ``window``."""
    from_right = profile.likely.int().flip(1).cumsum(1).flip(1)
    return (profile.ends * (profile.likely & (from_right <= window))).sum(1) / window
