"""How tokens are drawn, whatever the rule: exactly, at a temperature, greedily, or as published code does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from students.planner import summary
from teachers.chunks import in_chunks
from teachers.errors import UserError
from teachers.randomness import Randomness, categorical, gumbel_float32
from teachers.section import Section

Draw = Literal["exact", "greedy", "float32-gumbel"]


class Tokens(NamedTuple):
    """What was drawn at N positions.

    Attributes:
        tokens: (N,) int64.
        log_prob: (N,) their log-probabilities under the law that they were drawn from.
        confidence: (N,) their log-probabilities under the denoiser's own law, whatever the temperature.
        summaries: (N, 2), `students.planner.summary` of the denoiser's own law; (N, 0) where nobody asked.
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
    """

    draw: Draw = "exact"
    temperature: float = Field(default=1.0, gt=0)

    @property
    def exact(self) -> bool:
        """Whether a token has exactly the probability that `Tokens.log_prob` says."""
        return self.draw == "exact"

    def tokens(
        self,
        law: Callable[..., Tensor],
        chunks: int,
        uniforms: Tensor | None,
        randomness: Randomness,
        *tensors: Tensor,
        given: Tensor | None = None,
        summarise: bool = False,
    ) -> Tokens:
        """One token at each of N positions, V wide for a chunk of them at a time.

        Args:
            law: (n, V) log-probabilities of the denoiser at n positions, from the parts of ``tensors`` there.
            uniforms: (N,) float64 in [0, 1), for exact draws. randomness: for the other kinds.
            tensors: (N, …) each.
            given: (N,) tokens to take instead of drawing any.
            summarise: whether summaries are wanted.
        """

        def at_positions(uniforms: Tensor | None, given: Tensor | None, *parts: Tensor) -> tuple[Tensor, ...]:
            own = law(*parts)
            log_probs = own if self.temperature == 1 else (own / self.temperature).log_softmax(-1)
            tokens = self._draw(log_probs, uniforms, randomness) if given is None else given
            log_prob = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
            confidence = log_prob if self.temperature == 1 else own.gather(-1, tokens[:, None]).squeeze(-1)
            # a view such as own[:, :0] would keep all chunks' log-probabilities in memory until the last is done
            return tokens, log_prob, confidence, summary(own) if summarise else own.new_empty(len(own), 0)

        return Tokens(*in_chunks(at_positions, chunks, uniforms, given, *tensors))

    def _draw(self, log_probs: Tensor, uniforms: Tensor | None, randomness: Randomness) -> Tensor:
        if self.draw == "greedy":
            return log_probs.argmax(-1)
        if self.draw == "exact":
            assert uniforms is not None
            return categorical(log_probs, uniforms)
        if not isinstance(randomness, torch.Generator):
            raise UserError(
                "draw 'float32-gumbel' reproduces published figures and is for evaluation only; set it in "
                "evaluate.sampler, or choose exact"
            )
        return gumbel_float32(log_probs, randomness)
