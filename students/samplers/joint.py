"""Token and mask drawn together, transition by transition, as MDLM's released code does (2406.07524, "ddpm_cache").

In a transition from t to s a masked position becomes token v with probability p_v (α_s − α_t) / (1 − α_t), or stays
masked with probability (1 − α_s) / (1 − α_t). With exact draws that is ancestral sampling, whose law the texts have.

The released code draws both as one categorical in float32: the argmax of q / E, where q are the V + 1 probabilities and
E exponential noise of float32 uniforms, which can not be less than 6e-8. With 1,024 steps a token has a thousandth of
its probability in each transition. So one of probability 3e-5 or less is hardly ever drawn, where a draw of the token
alone (`teachers.randomness.gumbel_float32`) loses those of 1e-7 (2409.02908). The more steps, the less varied is the
text, and the lower its perplexity.

As in the released code, the network is asked again only after a transition that wrote something. There, times end at
1e-5, and what is then still masked, one token in 100,000, becomes its most probable token; here times end at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from students.drawing import Tokens
from students.samplers.sampler import Sampler
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.chunks import in_chunks
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.randomness import Randomness, of_rows, token_or_mask_float32, uniform_at


class Joint(Sampler):
    """Ancestral sampling of which every transition is drawn."""

    bounded: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    name: Literal["joint"] = "joint"

    @property
    def label(self) -> str:
        """See `Sampler.label`."""
        return super().label + ", float32 draws" * (self.draw == "float32-gumbel")

    def fitted(self, denoiser: Denoiser) -> Self:
        """See `Sampler.fitted`.

        Raises:
            UserError: it reads the time, and so has another law in every transition; or passes are collective.
        """
        if denoiser.collective:
            raise UserError(
                "sampler joint makes as many transitions in a pass as a text needs, and this network is spread over "
                "processes that must call it equally often; set sampler.name to ancestral"
            )
        if denoiser.spec.time_conditioned:
            raise UserError(
                "sampler joint asks a network once for several transitions, and this network reads the time, which "
                "passes in each; set sampler.name to ancestral"
            )
        return super().fitted(denoiser)

    def begin(self, work: Work) -> int:
        """A pass writes something in every row that takes it."""
        assert work.given is None, "a text says nothing of the transitions that wrote it"
        assert work.uniforms is None, "a position is drawn in many transitions"
        self.enter(work)
        work.transition = torch.zeros_like(work.steps)
        return work.passes

    def ask(self, work: Work) -> Asked | None:
        """All that is open."""
        rows = (work.canvas.open.any(1) & (work.transition < self._last(work))).nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        return Asked(rows, work.canvas.open[rows], 1 - work.transition[rows].double() / work.steps[rows])

    def _last(self, work: Work) -> Tensor:
        """(B,) how many transitions each row makes."""
        return work.steps if work.until is None else torch.minimum(work.steps, work.until)

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """Make transitions until each row has written something."""
        chunks, last = work.session.chunks(len(features)), self._last(work)[asked.rows]
        law, tokens = self._law(work, features, chunks), features.new_zeros(len(features), dtype=torch.int64)
        here, waiting = torch.zeros_like(tokens, dtype=torch.bool), work.transition[asked.rows] < last
        while bool(waiting.any()):
            # 1. one transition of the rows that have written nothing yet, at their positions among the N
            among = waiting[:, None].expand_as(asked.positions)[asked.positions]
            drawn = self._transition(work, asked.rows[waiting], asked.positions[waiting], chunks, law, among)
            work.transition[asked.rows[waiting]] += 1
            # 2. what is past the last token is the mask
            tokens[among], here[among] = drawn, drawn < work.session.spec.vocabulary
            commit = torch.zeros_like(asked.positions).masked_scatter(asked.positions, here)
            waiting = waiting & ~commit.any(1) & (work.transition[asked.rows] < last)
        tokens = torch.where(here, tokens, 0)
        given = self.tokens(work.session.denoiser.head, chunks, None, work.randomness, features, given=tokens)
        return given, torch.zeros_like(asked.positions).masked_scatter(asked.positions, here)

    def _law(self, work: Work, features: Tensor, chunks: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """How the law (n, V) that tokens are drawn from is made of part of a tensor (N, …), and that tensor.

        A law that is made at once serves all transitions. One that is made in chunks is made anew in each of them.
        """

        def law(part: Tensor) -> Tensor:
            return self.drawn_law(work.session.denoiser.head(part))

        return (law, features) if chunks > 1 else (torch.Tensor.detach, law(features))

    def _transition(
        self, work: Work, rows: Tensor, positions: Tensor, chunks: int, law: tuple[Callable, Tensor], among: Tensor
    ) -> Tensor:
        """One transition of rows (R,) at their n open ``positions`` (R, L): tokens (n,), V where the mask stays.

        Args:
            law: see `_law`. among: (N,) where its n positions are.
        """
        number, steps = work.transition[rows].double(), work.steps[rows]
        before, after = (work.process.alpha(1 - k / steps) for k in (number, number + 1))
        after = torch.where(number + 1 == steps, 1.0, after)
        moves, stays = (p[:, None].expand(positions.shape)[positions] for p in (after - before, 1 - after))
        real, uniforms = work.canvas.real, None
        if self.draw != "float32-gumbel":
            uniforms = uniform_at(
                of_rows(work.randomness, rows), positions, len(moves), None if real is None else real[rows]
            )

        def draw(part: Tensor, moves: Tensor, stays: Tensor, uniforms: Tensor | None) -> tuple[Tensor]:
            log_probs = law[0](part)
            if uniforms is None:
                return (token_or_mask_float32(log_probs, moves, stays, work.randomness),)
            return (self._exact(log_probs, moves, stays, uniforms, work.randomness),)

        return in_chunks(draw, chunks, law[1][among], moves, stays, uniforms)[0]

    def _exact(self, law: Tensor, moves: Tensor, stays: Tensor, uniforms: Tensor, randomness: Randomness) -> Tensor:
        """Whether a token is written and, with what is then left of the uniform number, which."""
        where, out = uniforms * (moves + stays), torch.full_like(moves, law.shape[1], dtype=torch.int64)
        writes = where >= stays
        out[writes] = self._draw(law[writes], ((where - stays) / moves)[writes], randomness)
        return out
