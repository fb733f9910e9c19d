"""Reward-guided ancestral sampling, RGAS (DiDi-Instruct, Zheng et al. 2509.25035): ask the discriminator on the way.

Both halves are ancestral sampling steered by the trained discriminator D, which gives one logit a token.

- *Gradient tilting*, the first steps: log p + h · clamp(∂ΣD/∂log p, ±1). At masked positions D reads the mixture
  Σ_v p_v E_v of its token embeddings, ΣD goes over the masked positions, and h rises linearly.
- *Candidates*, the last steps: M draws of the next canvas, reveals and tokens alike; one is kept, with probability
  softmax(ΣD). D reads each of them, masks and all, and the sum goes over all of its positions [code].

The gradient needs no V-wide graph: with e = Σ_v p_v E_v and g = ∂ΣD/∂e, ∂ΣD/∂log p_v = p_v (E_v·g − e·g), so autograd
stops at the embeddings. A guided step holds the (N, H) features of all masked positions, the discriminator's
activations for every row and two (B, L, E) tensors; what is V wide exists for a chunk of positions at a time.

What the released code gets wrong is not inherited: it reads the student without the rule that a mask is no text, so
some probability is lost to it; it shows the discriminator known tokens as logits of 1e9; it stops at t = 1e-5 and makes
one more pass than its steps say; and its tables leave the discriminator's passes out. Here the mask has no probability,
known tokens are read by their own embeddings, the last step reveals everything, and all passes are counted unless
``accounting`` asks for the published figure. What stays is the method's own: in training D saw masks where it now reads
mixtures, and its unmasked positions, which the choice among candidates also sums, had no target.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from students.critic import Discriminator
from students.drawing import Tokens
from students.samplers.sampler import Sampler
from students.samplers.work import Asked, Work
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.randomness import Randomness, categorical, of_rows, uniform, uniform_at


class Rgas(Sampler):
    """How strongly the discriminator steers, and how its passes are counted.

    Attributes:
        guided: the share of the steps, from the first, that tilt the gradient; the others choose among candidates.
        strength: h of the first and of the last guided step; (0, 0) leaves the guidance out.
        clamp: of each component of the gradient, ±.
        candidates: M; 1 leaves the choice out.
        accounting: "all": ``critic_nfe`` counts a forward pass as 1, and a forward and backward pass as 2, since only
            what was read needs a gradient, no weight. "published": 0, as the paper's tables leave them out.
    """

    needs_critic: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    name: Literal["rgas"] = "rgas"
    guided: float = Field(default=0.5, ge=0, le=1)  # [paper]
    strength: tuple[NonNegativeFloat, NonNegativeFloat] = (30.0, 40.0)  # [code] its config's
    clamp: float = Field(default=1.0, gt=0)  # [paper]
    candidates: PositiveInt = 4  # [paper]
    accounting: Literal["all", "published"] = "all"  # [own]

    @property
    def label(self) -> str:
        """Says so where passes are left out."""
        return super().label + " (critic passes not counted)" * (self.accounting == "published")

    @property
    def blind(self) -> bool:
        """The discriminator looks at what is drawn."""
        return False

    def check(self, critic: nn.Module | None) -> None:
        """See `Sampler.check`."""
        if not isinstance(critic, Discriminator):
            raise UserError(
                "sampler 'rgas' asks a trained discriminator, and there is none; evaluate the folder of a run with "
                "objective.ratio=discriminator (didi_instruct has it), name a release that holds one, as "
                "DiDi-Instruct's does, or use sampler ancestral"
            )

    def guidance(self, step: int, steps: int) -> float:
        """h of a step: linearly from the first value to the second over the guided steps [code], 0 after them."""
        guided = int(self.guided * steps)
        if step >= guided:
            return 0.0
        first, last = self.strength
        return first + (last - first) * step / max(1, guided - 1)

    def begin(self, work: Work) -> int:
        """All rows take the same steps; a step that reveals nothing of a row costs it no pass.

        A row may take more passes than it has open positions where these are fewer than the steps: the candidate that
        is kept may be one that reveals nothing.
        """
        for choice in (work.until, work.given, work.uniforms):
            assert choice is None, "a discriminator chooses among texts that end"
        return _steps(work)

    def ask(self, work: Work) -> Asked | None:
        """Draw what each candidate reveals, and ask where any of them does; everywhere, if the gradient is wanted."""
        steps, number, open_ = _steps(work), work.number, work.canvas.open
        candidates = 1 if number < int(self.guided * steps) else self.candidates
        t, s = (
            torch.full((len(open_),), 1 - k / steps, dtype=torch.float64, device=open_.device)
            for k in (number, number + 1)
        )
        chance = work.process.reveal_probability(t, s)[:, None, None]
        reveal = uniform(work.randomness, len(open_), candidates, open_.shape[1], real=work.canvas.real) < chance
        reveal &= open_[:, None]
        rows = reveal.any(2).any(1).nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        wanted = open_[rows] if self.guidance(number, steps) > 0 else reveal[rows].any(1)
        return Candidates(rows, wanted, t[rows], reveal=reveal[rows])

    def settle(self, work: Work, asked: Asked, before: Canvas, features: Tensor) -> tuple[Tokens, Tensor]:
        """Tilt the law of what is revealed, or choose among candidates; they share the pass."""
        assert isinstance(asked, Candidates)
        assert isinstance(work.critic, Discriminator)
        strength = self.guidance(work.number, _steps(work))
        if strength > 0:
            return self._tilted(work, work.critic, strength, asked, before, features)
        tokens = before.tokens[:, None].repeat(1, asked.reveal.shape[1], 1)
        for one, revealed in zip(tokens.unbind(1), asked.reveal.unbind(1), strict=True):
            drawn = self.draw_tokens(work, Asked(asked.rows, revealed, asked.time), features[revealed[asked.positions]])
            one[revealed] = drawn.tokens
        chosen = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        if tokens.shape[1] > 1:
            chosen = choose(work.critic, tokens, asked.reveal, before, of_rows(work.randomness, asked.rows))
            self._count(work, asked, tokens.shape[1])
        each = torch.arange(len(chosen), device=chosen.device)
        return _as_drawn(tokens[each, chosen], asked), asked.reveal[each, chosen]

    def _tilted(
        self, work: Work, critic: Discriminator, strength: float, asked: Candidates, before: Canvas, features: Tensor
    ) -> tuple[Tokens, Tensor]:
        denoiser, revealed = work.session.denoiser, asked.reveal[:, 0]
        table = critic.backbone.token_embeddings()
        slopes = embedding_gradients(denoiser, critic, table, before, features)[revealed]
        law = partial(tilted_log_probs, denoiser, table, strength, self.clamp)
        read = features[revealed[asked.positions]]
        uniforms = None
        if self.draw == "exact":
            uniforms = uniform_at(of_rows(work.randomness, asked.rows), revealed, len(read), before.real)
        drawn = self.tokens(law, work.session.chunks(len(read)), uniforms, work.randomness, read, slopes)
        self._count(work, asked, 2)
        return _as_drawn(before.tokens.masked_scatter(revealed, drawn.tokens), asked), revealed

    def _count(self, work: Work, asked: Asked, passes: int) -> None:
        if self.accounting == "all":
            work.session.critic_nfe[asked.rows] += passes


@dataclass(frozen=True)
class Candidates(Asked):
    """What a pass asks, and what each of M candidates would reveal: (R, M, L) bool."""

    reveal: Tensor = field(kw_only=True)


def _steps(work: Work) -> int:
    steps = int(work.steps.max())
    assert bool((work.steps == steps).all()), "guided rows take the same steps"
    return steps


def _as_drawn(tokens: Tensor, asked: Asked) -> Tokens:
    """Rows (R, L) as tokens of the asked positions; what has no law of its own has no probability."""
    nothing = torch.zeros(int(asked.positions.sum()), device=tokens.device)
    return Tokens(tokens[asked.positions], nothing, nothing, nothing[:, None][:, :0])


def choose(critic: Discriminator, candidates: Tensor, reveal: Tensor, before: Canvas, randomness: Randomness) -> Tensor:
    """Which of each row's candidates is kept, with probability softmax(ΣD), by an exact draw: (R,).

    Args:
        candidates: (R, M, L) tokens. reveal: (R, M, L) what each of them reveals of the canvas ``before``.
    """
    # one candidate of every row at a time: no more memory than the batch itself
    canvases = (
        replace(before, tokens=tokens, open=before.open & ~revealed)
        for tokens, revealed in zip(candidates.unbind(1), reveal.unbind(1), strict=True)
    )
    rewards = torch.stack([_reward(critic, canvas) for canvas in canvases], 1)
    return categorical(rewards, uniform(randomness, len(rewards)))


def _reward(critic: Discriminator, canvas: Canvas) -> Tensor:
    """(B,) ΣD over all but padding."""
    logits = critic(canvas)
    return (logits if canvas.real is None else logits * canvas.real).sum(1)


def embedding_gradients(
    denoiser: Denoiser, critic: Discriminator, table: Tensor, canvas: Canvas, features: Tensor
) -> Tensor:
    """g = ∂ Σ_open D / ∂e at what the discriminator reads: the tokens' embeddings, and at masks the mixture of them.

    Args:
        table: (V, E) the discriminator's embeddings. canvas: R rows, which may be all the same.
        features: (N, H) what the denoiser's head read at the N open positions.

    Returns:
        (R, L, E), in the table's type.
    """
    rows, z = len(canvas), canvas.tokens
    if not denoiser.spec.time_conditioned and canvas.real is None and bool((z == z[:1]).all()):
        # e.g. all masked: one pass serves every row
        canvas = canvas.rows(slice(0, 1))
        features = features[: int(canvas.open.sum())]

    def mixtures(features: Tensor) -> tuple[Tensor]:
        return (denoiser.head(features).softmax(-1).to(table) @ table,)

    embeddings = functional.embedding(canvas.tokens, table)
    chunks = chunk_count(len(features), denoiser.spec.vocabulary)
    (embeddings[canvas.open],) = in_chunks(mixtures, chunks, features)
    with torch.enable_grad():
        read = embeddings.requires_grad_()
        reward = critic.read_embeddings(canvas, read)[canvas.open].sum()
        (gradients,) = torch.autograd.grad(reward, read)
    return gradients.expand(rows, -1, -1)


def tilted_log_probs(
    denoiser: Denoiser, table: Tensor, strength: float, clamp: float, features: Tensor, slopes: Tensor
) -> Tensor:
    """log p + h · clamp(∂ΣD/∂log p, ±c) at n positions, not normalised: (n, V) float32; the mask column stays −∞.

    Args:
        features: (n, H). slopes: (n, E) g, as from `embedding_gradients`.
    """
    log_probs = denoiser.head(features)
    p = log_probs.softmax(-1)
    along = functional.linear(slopes, table).float()  # E_v·g
    gradient = p * (along - (p * along).sum(-1, keepdim=True))
    return log_probs + strength * gradient.clamp(-clamp, clamp)
