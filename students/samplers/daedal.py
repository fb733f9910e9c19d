"""DAEDAL's second phase (2508.00819): where nothing is certain and the end does not look like one, masks are inserted.

A window moves from left to right. Each pass commits all of its masked tokens that are certain enough, or else the most
certain one. Where the text's last tokens do not look like an end, the least certain of the window's masked tokens, if
it is uncertain enough, becomes several masks; what follows moves to the right, into the padding behind the text. The
first phase, which says how long texts are at first, is `students.samplers.length.Grown`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.drawing import Tokens
from students.samplers.blocks import Blocks
from students.samplers.length import AnyLength, Grown, Profile, end_confidence, ends_of, row_ends
from students.samplers.sampler import Sampler
from students.samplers.threshold import confident
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.chunks import scatter
from teachers.denoiser import Denoiser
from teachers.errors import UserError


class Daedal(Sampler):
    """When a token is certain enough to be written, and when so little is certain that the text must be longer.

    Attributes:
        threshold: probability of a drawn token that is exceeded by those that are written.
        doubt: probability below which a masked token may become several masks.
        enough: confidence in the end (students/samplers/length.py) with which nothing is inserted.
        window: positions that are looked at for it, from the right.
        insertion: masks that take the place of one.
    """

    adaptive: ClassVar[bool] = True
    inserts: ClassVar[bool] = True
    name: Literal["daedal"] = "daedal"
    draw: Literal["exact", "greedy"] = "greedy"  # [paper]
    block_length: int | Literal["attention"] | None = 32  # [paper]
    length: AnyLength | None = Grown()  # [paper]
    threshold: float = Field(default=0.9, gt=0, le=1)  # [paper]
    doubt: float = Field(default=0.1, ge=0, le=1)  # [paper]
    enough: float = Field(default=0.9, gt=0, le=1)  # [paper]
    window: int = Field(default=32, ge=1)  # [paper]
    insertion: int = Field(default=8, ge=2)  # [paper]

    @property
    def blind(self) -> bool:
        """It commits what it is certain of having drawn."""
        return False

    def fitted(self, denoiser: Denoiser) -> Daedal:
        """See `Sampler.fitted`.

        Raises:
            UserError: attention is in blocks, whose borders an insertion would move.
        """
        if denoiser.spec.attention == "block":
            raise UserError(
                "sampler daedal moves tokens over the borders of blocks, in which this model's attention is; choose "
                "threshold, with sampler.length"
            )
        return super().fitted(denoiser)

    def begin(self, work: Work) -> int:
        """As many passes as a canvas has tokens, since each writes one or more; or as many as ``steps`` allow."""
        canvas = work.canvas
        real = torch.ones_like(canvas.open) if canvas.real is None else canvas.real.clone()
        work.canvas = replace(canvas, real=real)
        work.blocks = Windows(work, self.block_tokens or canvas.length)
        return work.passes

    def ask(self, work: Work) -> Asked | None:
        """All of the text, written or not; the window says what may be written."""
        windows = _windows(work)
        windows.insert(work, self.insertion)
        windows.advance(work.canvas.open)
        rows = work.canvas.open.any(1).nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        share = work.canvas.rows(rows).open_share()
        return Asked(rows, windows.text(work.canvas)[rows], work.process.time_of(1 - share))

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """See `Sampler.settle`."""
        drawn, windows = self.draw_tokens(work, asked, features), _windows(work)
        if not work.choosing:
            return drawn, before.open.clone()
        # 1. what is certain in the window, or else the most certain token of it
        here = before.open & windows.here()[asked.rows]
        sure = scatter(drawn.confidence, asked.positions)
        commit = confident(sure[here], here, self.threshold, strict=True)
        # 2. where the text does not look as if it ended, the least certain token that is left
        profile = Profile(*(scatter(said, asked.positions) for said in ends_of(work.session.denoiser, features)))
        left = torch.where(here & ~commit, sure.exp(), torch.inf)
        open_ended = end_confidence(profile, self.window) < self.enough
        windows.doubt(asked.rows, left.argmin(1), open_ended & (left.amin(1) < self.doubt))
        return drawn, commit


class Windows(Blocks):
    """The window that each row is at.

    Attributes:
        begins: (B,) the first column that is written. left: (B,) the first column of the window, which has ``size``.
        place: (B,) where masks are to be inserted before the next pass; −1 for nowhere.
    """

    def __init__(self, work: Work, size: int):
        self.begins, self.size = work.canvas.open.int().argmax(1), size
        self.left, self.place = self.begins.clone(), torch.full_like(self.begins, -1)
        self.column = torch.arange(work.canvas.length, device=work.canvas.device)

    def text(self, canvas: Canvas) -> Tensor:
        """(B, L) what is or will be written."""
        assert canvas.real is not None
        return canvas.real & (self.column >= self.begins[:, None])

    def here(self) -> Tensor:
        """(B, L) the window."""
        return (self.column >= self.left[:, None]) & (self.column < self.left[:, None] + self.size)

    def advance(self, open_: Tensor) -> None:
        """Move on by whole windows to the first that has something open."""
        first = open_.int().argmax(1)
        windows = (first - self.begins) // self.size
        self.left = torch.where(open_.any(1), self.begins + windows * self.size, self.left)

    def doubt(self, rows: Tensor, columns: Tensor, where: Tensor) -> None:
        """Masks will be inserted at these columns (R,) of some rows, ``where`` (R,)."""
        self.place[rows] = torch.where(where, columns, -1)

    def insert(self, work: Work, count: int) -> None:
        """Put masks in the place of one, as many as there is padding for; what follows moves to the right."""
        canvas = work.canvas
        assert canvas.real is not None
        room = canvas.length - row_ends(canvas)
        more = torch.where(self.place >= 0, torch.clamp(room, max=count - 1), 0)[:, None]
        behind = self.column > self.place[:, None]
        source = torch.where(behind, (self.column - more).clamp(min=0), self.column)
        fresh = behind & (self.column <= self.place[:, None] + more)
        for rows, value in ((canvas.tokens, work.session.spec.mask_id), (canvas.open, True), (canvas.real, True)):
            rows.copy_(rows.gather(1, source).masked_fill(fresh, value))
        self.place.fill_(-1)


def _windows(work: Work) -> Windows:
    assert isinstance(work.blocks, Windows)
    return work.blocks
