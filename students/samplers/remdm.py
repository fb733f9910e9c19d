"""Remask what is written, and write it again (ReMDM, Wang et al. 2503.00307): a committed token can be reopened.

A transition from t to s, with α(t) the probability that a token is written by then, writes a masked position with
probability (α_s − (1 − σ)α_t) / (1 − α_t) and masks a written one with probability σ ≤ σ_max = min(1, (1 − α_s)/α_t);
so that whatever σ, as much is written at every time as in ancestral sampling, which is σ = 0 [paper, theorem 3.1]. The
strategies say what σ is:

- "cap": min(η, σ_max). "rescale": η · σ_max.
- "confidence": η · σ_max · w, with weights w over a row's written tokens, a softmax of −ψ, where ψ is the probability
  that a token had when it was written. Masked positions are written as with σ = 0 [code].
- "loop": ancestral until a part ``written`` of the text is written, at time ``on``; then σ = η while α stays where it
  is; from time ``off`` on ancestral again. A transition is of the phase that it begins in [code].

Neither choice needs a prediction, so a transition that writes nothing of a row costs it no pass. In the released code
times end at 1e-5, and one more pass gives what is still masked its most probable tokens: ``end``. There, top-p leaves
out the token that crosses the bound; here it keeps it, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.drawing import Tokens
from students.samplers.blocks import Blocks
from students.samplers.sampler import Sampler
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.chunks import scatter
from teachers.denoiser import Denoiser
from teachers.randomness import of_rows, uniform

Strategy = Literal["cap", "rescale", "confidence", "loop"]
PUBLISHED: dict[Strategy, float] = {"cap": 0.008, "rescale": 0.015, "confidence": 1.0, "loop": 0.02}
"""η of each strategy [code]: its scripts', for at least as many steps as tokens."""


class Remdm(Sampler):
    """How much is masked again, and when.

    Attributes:
        strategy: see above. eta: η; None for the published one.
        on, off, written: of "loop"; the times between which σ is η, and how much is written then.
        end: the time that the transitions end at; above 0, one more pass writes what is left, greedily.
    """

    edits: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    name: Literal["remdm"] = "remdm"
    strategy: Strategy = "rescale"
    eta: float | None = Field(default=None, ge=0, le=1)
    on: float = Field(default=0.55, gt=0, lt=1)  # [code]
    off: float = Field(default=0.05, gt=0, lt=1)  # [code]
    written: float = Field(default=0.9, gt=0, lt=1)  # [code]
    end: float = Field(default=0.0, ge=0, lt=1)  # [own]; [code] 1e-5

    @property
    def blind(self) -> bool:
        """What a text was on its way is not known from it."""
        return False

    @property
    def strength(self) -> float:
        """η."""
        return PUBLISHED[self.strategy] if self.eta is None else self.eta

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        return super().label.replace(self.name, f"{self.name} {self.strategy} {self.strength:g}", 1)

    @property
    def last(self) -> int:
        """How many passes come after the transitions of a block."""
        return int(self.end > 0)

    def most_transitions(self, length: int, steps: int) -> int:
        """See `Sampler.most_transitions`."""
        blocks = 1 if self.block_tokens is None else -(-length // self.block_tokens)
        return super().most_transitions(length, steps) + self.last * blocks

    def transitions_of(self, canvas: Canvas, denoiser: Denoiser, steps: Tensor) -> Tensor:
        """See `Sampler.transitions_of`."""
        return super().transitions_of(canvas, denoiser, steps) + self.last * self.block_counts(canvas, denoiser)

    def begin(self, work: Work) -> int:
        """A pass is a transition of all rows, though not each of them may take it."""
        assert work.given is None, "a token that is masked again is drawn again"
        assert work.uniforms is None, "a token that is masked again is drawn again"
        self.enter(work)
        work.confidence = torch.full(work.canvas.tokens.shape, torch.inf, device=work.canvas.device)
        return work.passes

    def blocks(self, work: Work) -> Blocks:
        """See `Sampler.blocks`."""
        blocks = super().blocks(work)
        blocks.steps = blocks.steps + self.last * blocks.count
        return blocks

    def current(self, work: Work) -> Tensor:
        """(B,) the block that each row is at: it is left after its last transition, not when nothing is masked."""
        return work.blocks.at(work.number)

    def ask(self, work: Work) -> Asked | None:
        """Draw what a transition writes and what it masks, and ask where it writes."""
        self.move(work)
        going = work.blocks.current < work.blocks.count
        rows = (going if work.until is None else going & (work.number < work.until)).nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        # 1. the chances of this transition at each position of a row's block
        here, open_ = work.blocks.here()[rows], work.canvas.open[rows]
        before, after, sigma = self.chances(work, rows, work.confidence[rows].masked_fill(open_ | ~here, torch.inf))
        reveal = (after - (1 - sigma) * before) / (1 - before)
        # 2. what happens there
        draws = uniform(of_rows(work.randomness, rows), *open_.shape)
        writes, masks = here & open_ & (draws < reveal), here & ~open_ & (draws < sigma)
        # 3. rows that write nothing need no pass
        asks = writes.any(1)
        work.mask(rows[~asks], masks[~asks])
        if not bool(asks.any()):
            return None
        rows, mask_id = rows[asks], work.session.spec.mask_id
        time = self.time_within(work, rows, work.blocks.current[rows], before[asks, 0])
        return Remasked(rows, writes[asks], time, masked=masks[asks], mask_id=mask_id)

    def chances(self, work: Work, rows: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of R rows before a transition: α(t), α(s), (R, 1) each, and σ at their positions, (R, 1) or (R, L).

        Args:
            confidence: (R, L) ψ of what is written in a row's block, ∞ elsewhere.
        """
        number, steps = (values[:, None].double() for values in self._place(work, rows))
        t, s = (1 - (1 - self.end) * n / steps for n in (number, number + 1))
        if self.strategy == "loop":
            before, after = self._loop(t, t), self._loop(s, t)
        else:
            before, after = work.process.alpha(t), work.process.alpha(s)
        # the last one writes all that is left
        after = torch.where(number >= steps - 1 + self.last, 1.0, after.clamp(max=1))
        most = torch.where(before > 0, (1 - after) / before, 1.0).clamp(max=1)
        if self.strategy == "cap":
            return before, after, most.clamp(max=self.strength)
        if self.strategy == "loop":
            loops = (t <= self.on) & (t > self.off)
            return before, after, most.clamp(max=self.strength) * loops
        weights = (-confidence.double()).softmax(1).nan_to_num(0.0) if self.strategy == "confidence" else 1.0
        return before, after, self.strength * most * weights

    def _loop(self, time: Tensor, phase: Tensor) -> Tensor:
        """How much is written at a time of the grid, as the phase that ``phase`` is of goes on."""
        first = (1 - time) * self.written / (1 - self.on)
        last = 1 - time * (1 - self.written) / self.off
        return torch.where(phase > self.on, first, torch.where(phase <= self.off, last, self.written))

    def _place(self, work: Work, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) the number of the transition within its block, and how many the block has."""
        blocks = work.blocks
        return work.number - blocks.began[rows], blocks.budget()[rows] - self.last

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """All that is asked is committed; in a pass after the transitions, the most probable tokens."""
        drawn = self.draw_tokens(work, asked, features)
        number, steps = self._place(work, asked.rows)
        after = (number == steps)[:, None].expand_as(asked.positions)[asked.positions]
        if bool(after.any()):
            best = self.model_copy(update={"draw": "greedy"}).draw_tokens(work, asked, features)
            drawn = drawn._replace(tokens=torch.where(after, best.tokens, drawn.tokens))
        psi = scatter(drawn.log_prob.exp().to(work.confidence), asked.positions)
        work.confidence[asked.rows] = torch.where(asked.positions, psi, work.confidence[asked.rows])
        return drawn, asked.positions


@dataclass(frozen=True)
class Remasked(Asked):
    """What a pass asks, and which written positions (R, L) get the mask again beside that."""

    masked: Tensor = field(kw_only=True)
    mask_id: int = field(kw_only=True)

    def written(self, before: Canvas, tokens: Tensor, commit: Tensor) -> Tensor:
        """See `Asked.written`."""
        return super().written(before, tokens, commit).masked_fill(self.masked, self.mask_id)

    def left_open(self, before: Canvas, commit: Tensor) -> Tensor:
        """See `Asked.left_open`."""
        return super().left_open(before, commit) | self.masked
