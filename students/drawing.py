"""How tokens are drawn, whatever the rule: exactly, at a temperature, greedily, or as published code does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from teachers.chunks import in_chunks
from teachers.ops.draw import head_and_draw
from teachers.ops.head import LinearHead
from teachers.randomness import Randomness, categorical, check_generator, gumbel_float32
from teachers.section import Section

Draw = Literal["exact", "greedy", "float32-gumbel"]
Summary = Callable[[Tensor, Tensor], Tensor]
"""What a rule reads of n positions, from the denoiser's own law and from that which tokens are drawn from: (n, S)."""


class Tokens(NamedTuple):
    """What was drawn at N positions.

    Attributes:
        tokens: (N,) int64.
        log_prob: (N,) their log-probabilities under the law that they were drawn from.
        confidence: (N,) their log-probabilities under the denoiser's own law, whatever the temperature.
        summaries: (N, S), what the rule's `Summary` says; (N, 0) where it has none.
    """

    tokens: Tensor
    log_prob: Tensor
    confidence: Tensor
    summaries: Tensor


class Drawing(Section):
    """How tokens are drawn.

    Attributes:
        draw: "exact" categorical draws in float64; "greedy", the most probable token; or "float32-gumbel" as published
            code makes them, which can not draw improbable tokens.
        temperature: divides the log-probabilities of tokens: below 1 text is sharper than the model says.
        top_k: only so many tokens are drawn at a position, the most probable ones; None for all.
        top_p: only the most probable tokens are drawn, as few as have this probability together; None for all. After
            ``temperature`` and ``top_k``.
    """

    draw: Draw = "exact"
    temperature: float = Field(default=1.0, gt=0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)

    @property
    def exact(self) -> bool:
        """Whether a token has exactly the probability that `Tokens.log_prob` says."""
        return self.draw == "exact"

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the denoiser's own law."""
        return self.temperature == 1 and self.top_k is None and self.top_p is None

    def drawn_law(self, own: Tensor) -> Tensor:
        """The law (n, V) that tokens are drawn from, of the denoiser's ``own``; log-probabilities."""
        if self.plain:
            return own
        law = own / self.temperature
        if self.top_k is not None:
            law = most_probable(law, self.top_k)
        if self.top_p is not None:
            law = nucleus(law, self.top_p)
        return law.log_softmax(-1)

    def tokens(
        self,
        law: Callable[..., Tensor],
        chunks: int,
        uniforms: Tensor | None,
        randomness: Randomness,
        *tensors: Tensor,
        given: Tensor | None = None,
        summary: Summary | None = None,
    ) -> Tokens:
        """One token at each of N positions, V wide for a chunk of them at a time.

        Args:
            law: (n, V) log-probabilities of the denoiser at n positions, from the parts of ``tensors`` there.
            uniforms: (N,) float64 in [0, 1), for exact draws. randomness: for the other kinds.
            tensors: (N, …) each.
            given: (N,) tokens to take instead of drawing any.
            summary: what to say of each position beside its token.
        """

        def at_positions(uniforms: Tensor | None, given: Tensor | None, *parts: Tensor) -> tuple[Tensor, ...]:
            own = law(*parts)
            log_probs = self.drawn_law(own)
            tokens = self._draw(log_probs, uniforms, randomness) if given is None else given
            log_prob = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            confidence = log_prob if self.plain else own.gather(-1, tokens[:, None]).squeeze(-1)
            # a view such as own[:, :0] would keep all chunks' log-probabilities in memory until the last is done
            said = own.new_empty(len(own), 0) if summary is None else summary(own, log_probs)
            return tokens, log_prob, confidence, said

        return Tokens(*in_chunks(at_positions, chunks, uniforms, given, *tensors))

    @property
    def fusible(self) -> bool:
        """Whether a token is drawn from all of the vocabulary, by a rule that `fused_tokens` knows."""
        return self.draw != "float32-gumbel" and self.top_k is None and self.top_p is None

    def fused_tokens(self, head: LinearHead, features: Tensor, uniforms: Tensor | None) -> Tokens:
        """`tokens` where `fusible`, never V wide: those of the same law; nearly all are the same tokens.

        Args:
            features: (N, H). uniforms: as of `tokens`.
        """
        drawn = head_and_draw(head, features, uniforms if self.exact else None, self.temperature)
        return Tokens(*drawn, drawn.log_prob.new_empty(len(features), 0))

    def _draw(self, log_probs: Tensor, uniforms: Tensor | None, randomness: Randomness) -> Tensor:
        if self.draw == "greedy":
            return log_probs.argmax(-1)
        if self.draw == "exact":
            assert uniforms is not None
            return categorical(log_probs, uniforms)
        return gumbel_float32(log_probs, check_generator(randomness))


def most_probable(law: Tensor, count: int) -> Tensor:
    """Only the ``count`` largest of (n, V) log-probabilities, and what ties with the last of them; −∞ elsewhere."""
    least = law.topk(min(count, law.shape[-1]), -1).values[:, -1:]
    return law.masked_fill(law < least, -torch.inf)


def nucleus(law: Tensor, share: float) -> Tensor:
    """Only the largest of (n, V) log-probabilities, as few as have probability ``share`` together; −∞ elsewhere."""
    # 1. from the most probable token to the least, what those before it have together
    ordered, order = law.sort(-1, descending=True)
    p = ordered.softmax(-1)
    before = p.cumsum(-1) - p
    # 2. the first token always stays
    kept = ordered.masked_fill(before > share, -torch.inf)
    return torch.empty_like(law).scatter_(-1, order, kept)
