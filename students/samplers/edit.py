"""Write and edit (LLaDA2.1): what is committed may still change until its block is left.

A pass draws a token for every masked position of the current block, and for every position that the block has already
written. Masks are committed as by `Threshold`; a written token is replaced where another one was drawn that is certain
enough. When nothing is masked any more, passes go on until one changes nothing, at most ``post_steps`` of them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.drawing import Tokens
from students.samplers.blocks import Blocks
from students.samplers.score import scores
from students.samplers.stepwise import Prediction, StepwiseSampler
from students.samplers.threshold import confident
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.chunks import scatter
from teachers.denoiser import Denoiser


class Edit(StepwiseSampler):
    """When a token is certain enough to be written, and to take another one's place.

    Attributes:
        threshold: probability of a drawn token that is exceeded by those that are written; the best one always is.
        editing_threshold: probability that is exceeded by a token that replaces another one.
        post_steps: most passes of a block in which nothing is masked any more; its share of the steps limits them too.
        tempered: see `students.samplers.threshold.Threshold`.
    """

    adaptive: ClassVar[bool] = True
    edits: ClassVar[bool] = True
    name: Literal["edit"] = "edit"
    threshold: float = Field(default=0.95, gt=0, le=1)  # [code]
    editing_threshold: float = Field(default=0.9, gt=0, le=1)  # [code]
    post_steps: int = Field(default=16, ge=0)  # [code]
    tempered: bool = False

    @property
    def blind(self) -> bool:
        """It keeps what it has drawn where that is certain."""
        return False

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        return super().label.replace(self.name, f"{self.name} {self.threshold:g}/{self.editing_threshold:g}", 1)

    def blocks(self, work: Work) -> Blocks:
        """See `Sampler.blocks`."""
        return EditedBlocks(work.canvas, work.session.denoiser, work.steps, self.block_tokens, self.budget == "block")

    def current(self, work: Work) -> Tensor:
        """(B,) the block that each row is at."""
        blocks = _edited(work)
        return blocks.current + blocks.done.long()

    def positions(self, work: Work) -> Tensor:
        """(B, L) what is to be written in the current block, and what it has written."""
        return super().positions(work) | (work.blocks.here() & ~work.canvas.open)

    def commit(self, prediction: Prediction) -> Tensor:
        """See `StepwiseSampler.commit`."""
        score = scores("confidence", self.tempered, prediction)
        return confident(score, prediction.candidates, self.threshold, strict=True)

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """See `Sampler.settle`."""
        drawn, going = self.draw_tokens(work, asked, features), self.going(work)[asked.rows]
        # 1. what is masked
        masked = asked.positions & before.open
        at = masked[asked.positions]
        part = Tokens(*(values[at] for values in drawn))
        written = self.choice(work, asked.rows, before, masked, features[at], part)
        written = torch.where(going[:, None], written, masked)
        # 2. what was written
        p = scatter((drawn.log_prob if self.tempered else drawn.confidence).exp(), asked.positions)
        changed = scatter(drawn.tokens, asked.positions) != before.tokens
        edited = asked.positions & ~before.open & changed & (p > self.editing_threshold)
        # 3. whether a row is through with its block
        _edited(work).pass_made(asked.rows, masked, written, edited, going, self.post_steps)
        return drawn, written | edited


class EditedBlocks(Blocks):
    """Blocks that are left when nothing changes in them any more.

    Attributes:
        post: (B,) passes made in the current block since nothing was masked. done: (B,) whether it can be left.
    """

    def __init__(self, canvas: Canvas, denoiser: Denoiser, steps: Tensor, length: int | None, each: bool = False):
        super().__init__(canvas, denoiser, steps, length, each)
        self.post, self.done = torch.zeros_like(self.count), torch.ones_like(self.count, dtype=torch.bool)

    def move(self, current: Tensor, number: int) -> None:
        """See `Blocks.move`."""
        again = current == self.current
        self.post, self.done = self.post * again, self.done & again
        super().move(current, number)

    def pass_made(
        self, rows: Tensor, masked: Tensor, written: Tensor, edited: Tensor, going: Tensor, post_steps: int
    ) -> None:
        """Count a pass of R rows, and see whether it was the last of their blocks.

        Args:
            masked, written, edited: (R, L) what was masked before it, and what it changed. going: (R,) as
                `StepwiseSampler.going`. post_steps: as of `Edit`.
        """
        full = ~masked.any(1)
        self.post[rows] += full
        spent = ~(masked & ~written).any(1) & (self.post[rows] >= post_steps)
        self.done[rows] = ~going | spent | (full & ~edited.any(1))


def _edited(work: Work) -> EditedBlocks:
    assert isinstance(work.blocks, EditedBlocks)
    return work.blocks
