"""The contract every sampler keeps, and what they share: counted passes and the draw of a token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from students.planner import summary
from teachers.chunks import chunk_count, in_chunks, row_sums
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.process import MaskedProcess
from teachers.randomness import categorical, gumbel_float32, uniform
from teachers.section import Section

Draw = Literal["exact", "float32-gumbel"]
LOG_LINEAR = MaskedProcess()


@dataclass(frozen=True)
class SampleOutput:
    """Finished canvases and what they cost.

    Attributes:
        tokens: (B, L) int64, no mask left.
        nfe: (B,) int64, forward passes of the denoiser that each row needed.
        critic_nfe: (B,) int64, passes of any other network (discriminator, verifier).
        query_tokens: tokens sent through the denoiser, all rows together: L for each counted pass.
        log_prob: (B,) float64 nats, Σ log q(token | canvas before its pass) over what was filled, as
            `MarkovDenoiser.kl_bound` takes it. None where the tokens' law is another (positions were chosen by what was
            drawn, a discriminator chose, draws are not exact), and for random starts.
    """

    tokens: Tensor
    nfe: Tensor
    critic_nfe: Tensor
    query_tokens: int
    log_prob: Tensor | None


class Sampler(Protocol):
    """Fills the masked positions of a canvas; every other token (prompt, suffix, infilling context) is kept."""

    def __call__(
        self,
        denoiser: Denoiser,
        canvas: Tensor,
        steps: int,
        generator: torch.Generator,
        process: MaskedProcess = ...,
        draw: Draw = ...,
    ) -> SampleOutput:
        """Sample.

        Args:
            canvas: (B, L) int64, the mask token where there is something to fill.
            steps: how many reverse transitions; no row takes more passes than this, nor more than it has masks
                (unless it throws candidates away).
            generator: on the canvas's device; the only source of randomness.
            draw: "exact" float64 categorical draws, or "float32-gumbel" as published code makes them, tail truncated.
        """


class SamplerConfig(Section, ABC):
    """``evaluate.sampler``: which one, and its settings; just the name where the defaults will do.

    Attributes:
        needs_critic: whether `build` must be given a critic; where there is none, as for a teacher, the reference is
            plain ancestral sampling.
        adaptive: how many passes a row takes depends on what the network says; ``steps`` is then only a cap.
    """

    needs_critic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    name: str

    @property
    def label(self) -> str:
        """What tables call it: its name, and what a reader must know to compare its figures."""
        return self.name

    @abstractmethod
    def build(self, critic: nn.Module | None = None) -> Sampler:
        """The sampler.

        Args:
            critic: the run's trained critic, for samplers that ask one.
        """


class CountedDenoiser:
    """A denoiser that counts the passes of every row of a canvas."""

    def __init__(self, denoiser: Denoiser, canvas: Tensor, steps: int):
        if steps < 1:
            raise UserError(f"steps is {steps}; a sampler needs at least 1, set a positive number")
        self.denoiser, self.spec = denoiser, denoiser.spec
        self.nfe = torch.zeros(len(canvas), dtype=torch.int64, device=canvas.device)

    def features(self, z: Tensor, rows: Tensor, select: Tensor, t: Tensor) -> Tensor:
        """What the denoiser's head reads at the selected positions; one pass for each row.

        Args:
            z: (R, L) the canvases of ``rows``. rows: (R,) their indices in the whole batch.
            select: (R, L) bool. t: (R,) times, passed on to time-conditioned denoisers only.

        Returns:
            (N, H) in row-major order of ``select``.
        """
        self.nfe[rows] += 1
        return self.denoiser.features_at(z, select, t.float() if self.spec.time_conditioned else None)

    def output(self, tokens: Tensor, critic_nfe: Tensor | None = None, log_prob: Tensor | None = None) -> SampleOutput:
        """The finished canvases with the passes counted so far, and those of another network, if one was asked.

        Arguments as the attributes of `SampleOutput`.
        """
        query_tokens = int(self.nfe.sum()) * tokens.shape[1]
        critic_nfe = torch.zeros_like(self.nfe) if critic_nfe is None else critic_nfe
        return SampleOutput(tokens, self.nfe, critic_nfe, query_tokens, log_prob)


def draw_tokens(denoiser: Denoiser, features: Tensor, generator: torch.Generator, draw: Draw) -> tuple[Tensor, Tensor]:
    """One token at each of N positions, log-probabilities existing for a chunk of them at a time.

    Args:
        features: (N, H) what the denoiser's head reads there.

    Returns:
        (N,) int64 tokens; (N,) their log-probabilities.
    """
    tokens, log_prob = draw_from(denoiser.head, denoiser.spec.vocabulary, generator, draw, features)
    return tokens, log_prob


def draw_from(
    log_probs_of: Callable[..., Tensor],
    vocabulary: int,
    generator: torch.Generator,
    draw: Draw,
    *tensors: Tensor,
    also: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """One token at each of N positions from any law, V wide for a chunk of them at a time; as `draw_tokens`.

    Args:
        log_probs_of: (n, V) log-probabilities, normalised or not, from the parts of ``tensors`` at n positions.
        tensors: (N, …) each.
        also: something else to read of the (n, V) that are drawn from, for a third result.
    """

    def tokens_of(uniforms: Tensor | None, *parts: Tensor) -> tuple[Tensor, ...]:
        log_probs = log_probs_of(*parts)
        tokens = gumbel_float32(log_probs, generator) if uniforms is None else categorical(log_probs, uniforms)
        drawn = tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)
        return drawn if also is None else (*drawn, also(log_probs))

    uniforms = uniform(generator, len(tensors[0])) if draw == "exact" else None
    return in_chunks(tokens_of, chunk_count(len(tensors[0]), vocabulary), uniforms, *tensors)


@torch.no_grad()
def commit_by(
    choose: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    denoiser: Denoiser,
    canvas: Tensor,
    steps: int,
    generator: torch.Generator,
    process: MaskedProcess,
    draw: Draw,
    *,
    blind: bool,
) -> SampleOutput:
    """How adaptive samplers fill a canvas: each pass draws every masked token and commits those that a rule chooses.

    Args:
        choose: (N, H) features, (N,) log-probabilities of the drawn tokens, (N, 2) `students.planner.summary` at the
            masked positions, and (R, L) which these are → (R, L) bool, some of them, at least one in every row. It is
            not asked in the last of ``steps`` passes, which commits everything.
        blind: whether ``choose`` looks at the canvas alone and not at the drawn tokens' log-probabilities, so that
            what it commits has the law it was drawn from.

    Returns:
        As of `Sampler`, which has the other arguments.
    """
    counted = CountedDenoiser(denoiser, canvas, steps)
    z = canvas.clone()
    total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for n in range(min(steps, canvas.shape[1])):
        rows = (z == denoiser.spec.mask_id).any(1).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        part = z[rows]
        masked = part == denoiser.spec.mask_id
        features = counted.features(part, rows, masked, process.time_of(1 - masked.double().mean(1)))
        tokens, log_prob, summaries = draw_from(
            denoiser.head, denoiser.spec.vocabulary, generator, draw, features, also=summary
        )
        commit = choose(features, log_prob, summaries, masked) if n + 1 < steps else masked
        z[rows] = torch.where(commit, part.masked_scatter(masked, tokens), part)
        total[rows] += row_sums(log_prob[commit[masked]].double(), commit)
    return counted.output(z, log_prob=total if blind and draw == "exact" else None)
