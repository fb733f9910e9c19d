"""Rules that decide pass by pass, by what the denoiser says of the open positions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from students.drawing import Tokens
from students.samplers.sampler import Sampler
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.randomness import Randomness, of_rows


@dataclass(frozen=True)
class Prediction:
    """What a rule that decides pass by pass looks at, N being the candidates of R rows, in row-major order.

    Where a canvas is written in blocks, passes and positions are those of the block that a row is at.

    Attributes:
        canvas: the rows before the pass.
        candidates: (R, L) the open positions that may be committed: all of them, or those of a block.
        block: (R, L) all positions of the block, or of the text where there are none; padding is not of it.
        number: (R,) n of the pass, from 0. steps: (R,) how many there may be.
        to_write: (R,) how many positions were open at the start.
        features: (N, H) what the denoiser's head read.
        log_prob, confidence, summaries: (N,), (N,) and (N, S), see `students.drawing.Tokens`.
        denoiser: which may have an opinion. randomness: of these rows.
    """

    canvas: Canvas
    candidates: Tensor
    block: Tensor
    number: Tensor
    steps: Tensor
    to_write: Tensor
    features: Tensor
    log_prob: Tensor
    confidence: Tensor
    summaries: Tensor
    denoiser: Denoiser
    randomness: Randomness


class StepwiseSampler(Sampler):
    """A rule that decides pass by pass.

    Where the denoiser has block attention and predicts the next token, the first token of an attention block is
    committed alone: what predicts it sees nothing of its block (Fast-dLLM v2, which takes it from the pass that stores
    the block before).
    """

    @abstractmethod
    def commit(self, prediction: Prediction) -> Tensor:
        """Which of the candidates to commit: (R, L) bool, at least one in every row.

        What it says of a row's last step, or its last within a block, is not heeded: that one commits everything.
        """

    def begin(self, work: Work) -> int:
        """See `Sampler.begin`."""
        self.enter(work)
        return work.passes

    def ask(self, work: Work) -> Asked | None:
        """What is open in each row's current block."""
        self.move(work)
        unfinished = work.blocks.current < work.blocks.count
        if work.until is not None:
            unfinished &= work.number < work.until
        rows = unfinished.nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        share = work.canvas.rows(rows).open_share()
        return Asked(rows, self.positions(work)[rows], work.process.time_of(1 - share))

    def positions(self, work: Work) -> Tensor:
        """(B, L) what is open in each row's current block, or only the first of it where that is committed alone."""
        candidates = work.canvas.open & work.blocks.here()
        if not work.session.spec.shift:
            return candidates
        first = candidates & work.blocks.first
        alone = first.any(1) & self.going(work)
        return torch.where(alone[:, None], first, candidates)

    def going(self, work: Work) -> Tensor:
        """(B,) whether another pass may follow in the current block."""
        return work.number - work.blocks.began + 1 < work.blocks.budget()

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """See `Sampler.settle`."""
        drawn, commit = self.draw_tokens(work, asked, features), asked.positions.clone()
        going = self.going(work)[asked.rows]
        if work.choosing:
            at = going[:, None].expand_as(commit)[commit]
            part = Tokens(*(values[at] for values in drawn))
            commit[going] = self.choice(work, asked.rows[going], before.rows(going), commit[going], features[at], part)
        return drawn, commit

    def idle(self, work: Work) -> None:
        """The rule is asked about no rows, since it may ask the denoiser in its turn."""
        features = work.session.idle(work.canvas)
        if work.choosing:
            rows, none = work.steps.new_zeros(0), features.new_zeros(0)
            nothing = Tokens(rows, none, none, none.view(0, 2))
            self.choice(work, rows, work.canvas.rows(rows), work.canvas.open[rows], features, nothing)

    def choice(
        self, work: Work, rows: Tensor, before: Canvas, candidates: Tensor, features: Tensor, drawn: Tokens
    ) -> Tensor:
        """What `commit` says of R rows: (R, L).

        Args:
            candidates: (R, L), N positions. features: (N, H) there. drawn: the N tokens there.
        """
        blocks = work.blocks
        prediction = Prediction(
            before, candidates, blocks.extent()[rows], work.number - blocks.began[rows], blocks.budget()[rows],
            blocks.here().sum(1)[rows], features, drawn.log_prob, drawn.confidence, drawn.summaries,
            work.session.denoiser, of_rows(work.randomness, rows),
        )  # fmt: skip
        return self.commit(prediction)
