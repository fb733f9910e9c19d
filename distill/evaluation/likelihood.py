"""log p(continuation | context) of a masked diffusion model.

Such a model has no likelihood of its own. What is estimated is the bound that it is trained on, of the continuation
alone; or what it says token by token from left to right, which is the likelihood of a sampler that writes in that order
and the same where a model's predictions agree with each other, as those of an exact law do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from distill.generation import steps_of_rows
from objectives.objective import timed
from students.fill import fill
from students.samplers import LOG_LINEAR, Sampler
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, row_sums
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform

Estimate = Literal["elbo", "left_to_right"]
Ids = Sequence[int]


class Pair(NamedTuple):
    """A context, and the continuation whose probability is asked for; tokens."""

    context: Ids
    continuation: Ids


@dataclass(frozen=True)
class LogLikelihood:
    """What is known of a pair.

    Attributes:
        log_prob: nats, of the whole continuation.
        greedy: whether each of its tokens is the most probable one behind those before it; None where that was not
            asked for, as in the bound of more than one token.
        passes: that were made for it.
    """

    log_prob: float
    greedy: bool | None
    passes: int


class Query(NamedTuple):
    """One pass: n tokens of a continuation, of which some are masked and some of these asked for.

    Attributes:
        number: of its pair. pair: it, or a part of it.
        masked, asked: (n,) bool. weight: of the sum of the asked tokens' log-probabilities.
    """

    number: int
    pair: Pair
    masked: Tensor
    asked: Tensor
    weight: float


@torch.no_grad()
def log_likelihoods(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    samples: int,
    seed: int,
    batch: int,
    estimate: Estimate = "elbo",
    process: MaskedProcess = LOG_LINEAR,
) -> list[LogLikelihood]:
    """Of every pair, ``batch`` passes at once.

    An estimate is fixed by the seed and the pair; those of one context share their draws, which makes comparing its
    continuations more exact.

    Args:
        samples: passes a continuation, or a block of one under block attention. Where it has no more sets of tokens
            than that, each set is masked once and the bound is exact: in one pass for one token.

    Raises:
        UserError: a pair is longer than the model's positions.
    """
    check_pairs(pairs, denoiser.spec)
    longest_first = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
    totals, greedy, passes = [0.0] * len(pairs), [True] * len(pairs), [0] * len(pairs)
    pending = queries(pairs, longest_first, denoiser.spec, samples, seed, estimate)
    while part := list(islice(pending, batch)):
        sums, best = asked(denoiser, part, process)
        for query, nats, most_probable in zip(part, sums.tolist(), best.tolist(), strict=True):
            totals[query.number] += query.weight * nats
            greedy[query.number] &= most_probable
            passes[query.number] += 1
    told = [estimate == "left_to_right" or len(pair.continuation) == 1 for pair in pairs]
    answers = zip(totals, greedy, told, passes, strict=True)
    return [LogLikelihood(total, best if is_told else None, count) for total, best, is_told, count in answers]


def check_pairs(pairs: Iterable[Pair], spec: DenoiserSpec) -> None:
    """Refuse pairs that do not fit.

    Raises:
        UserError: one is longer than the model's positions.
    """
    for pair in pairs:
        if (length := len(pair.context) + len(pair.continuation)) > spec.max_length:
            raise UserError(
                f"a context and its continuation have {length} tokens, and the model {spec.max_length} positions; "
                "shorten the context"
            )


def queries(
    pairs: Sequence[Pair], order: Iterable[int], spec: DenoiserSpec, samples: int, seed: int, estimate: Estimate
) -> Iterator[Query]:
    """All passes, those of one pair after another."""
    for number in order:
        for part in in_blocks(pairs[number], spec.block_size if spec.attention == "block" else None):
            length = len(part.continuation)
            if estimate == "left_to_right":
                masked = torch.ones(length, length, dtype=torch.bool).triu()
                rows = zip(masked, torch.eye(length, dtype=torch.bool), torch.ones(length).tolist(), strict=True)
            else:
                masked, weights = masks(length, samples, streams(seed, part.context))
                rows = zip(masked, masked, weights.tolist(), strict=True)
            yield from (Query(number, part, *row) for row in rows)


def in_blocks(pair: Pair, size: int | None) -> Iterator[Pair]:
    """A continuation's blocks, each behind all that comes before it; itself where attention has none.

    The bound of a model of blocks is the sum of theirs (2503.09573, eq. 8).
    """
    tokens, first = [*pair.context, *pair.continuation], len(pair.context)
    while first < len(tokens):
        end = len(tokens) if size is None else min(len(tokens), first // size * size + size)
        yield Pair(tokens[:first], tokens[first:end])
        first = end


def streams(seed: int, context: Ids) -> RowStreams:
    """The randomness of a context, the same on every machine and in every order of requests."""
    key = hashlib.sha256(repr(list(context)).encode()).digest()
    return RowStreams(seed, (int.from_bytes(key[:8], "big"),), [0])


def masks(length: int, samples: int, randomness: RowStreams) -> tuple[Tensor, Tensor]:
    """Which of n tokens each pass masks, (R, n) bool, and what the sum of their log-probabilities weighs, (R,) float64.

    E_t[1/t · Σ_masked] is the mean over k = 1 … n of n/k · Σ over k tokens chosen at random [LLaDA's released code].
    Counts k are spread evenly from a random start, so that their share of the variance is small [same].
    """
    # 1. all sets but the empty one, each as often as the process makes it
    if 2**length - 1 <= samples:
        sets = torch.arange(1, 2**length)[:, None] >> torch.arange(length) & 1
        counts = sets.sum(1).double()
        orders = torch.lgamma(counts) + torch.lgamma(length - counts + 1) - math.lgamma(length + 1)
        return sets.bool(), orders.exp()  # 1 / (k · C(n, k))
    # 2. or some of them
    start = uniform(randomness, 1, 1 + samples * length)[0]
    counts = ((start[0] + torch.arange(samples)) / samples * length).long().clamp(max=length - 1) + 1
    places = start[1:].view(samples, length).argsort(1).argsort(1)
    return places < counts[:, None], length / counts.double() / samples


def asked(denoiser: Denoiser, part: Sequence[Query], process: MaskedProcess) -> tuple[Tensor, Tensor]:
    """One pass of R queries: the sum of the asked log-probabilities, (R,), and whether all were the largest, (R,)."""
    tokens, real = rows_of([query.pair for query in part], denoiser.spec)
    masked, where = (torch.zeros_like(real) for _ in range(2))
    for row, query in enumerate(part):
        begin, end = len(query.pair.context), len(query.pair.context) + len(query.pair.continuation)
        masked[row, begin:end], where[row, begin:end] = query.masked, query.asked
    tokens, real, masked, where = (tensor.to(denoiser.device) for tensor in (tokens, real, masked, where))
    canvas = canvas_of(tokens, real, masked, denoiser.spec, process)

    def of_tokens(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = denoiser.head(features)
        return log_probs.gather(-1, targets[:, None]).squeeze(-1).double(), log_probs.argmax(-1) == targets

    chunks = chunk_count(int(where.sum()), denoiser.spec.vocabulary)
    nats, best = in_chunks(of_tokens, chunks, denoiser.features(canvas, where), tokens[where])
    return row_sums(nats, where), row_sums((~best).long(), where) == 0


def rows_of(pairs: Sequence[Pair], spec: DenoiserSpec) -> tuple[Tensor, Tensor]:
    """Contexts with their continuations, padded on the right: tokens (R, L), and which of them are real."""
    width = max(len(pair.context) + len(pair.continuation) for pair in pairs)
    tokens = torch.full((len(pairs), width), spec.mask_id if spec.pad_id is None else spec.pad_id)
    real = torch.zeros_like(tokens, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        ids = torch.tensor([*pair.context, *pair.continuation])
        tokens[row, : len(ids)], real[row, : len(ids)] = ids, True
    return tokens, real


def canvas_of(tokens: Tensor, real: Tensor, masked: Tensor, spec: DenoiserSpec, process: MaskedProcess) -> Canvas:
    """Rows at the time at which so much of them is masked."""
    canvas = Canvas(tokens.masked_fill(masked, spec.mask_id), masked, None if bool(real.all()) else real)
    return timed(canvas, process)


@torch.no_grad()
def written_greedily(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    sampler: Sampler,
    steps: int,
    seed: int,
    batch: int,
    process: MaskedProcess = LOG_LINEAR,
    critic: nn.Module | None = None,
) -> list[bool]:
    """Whether a rule, drawing greedily, writes just the continuation where so many tokens are to be written.

    Args:
        steps: as of `students.fill.fill`; fewer where there are fewer tokens.
    """
    greedy = sampler.model_copy(update={"draw": "greedy"})
    answers: list[bool] = []
    for first in range(0, len(pairs), batch):
        part = pairs[first : first + batch]
        tokens, real = (tensor.to(denoiser.device) for tensor in rows_of(part, denoiser.spec))
        begins = torch.tensor([len(pair.context) for pair in part], device=denoiser.device)
        open_ = real & (torch.arange(tokens.shape[1], device=denoiser.device) >= begins[:, None])
        canvas = canvas_of(tokens, real, open_, denoiser.spec, process)
        randomness = RowStreams(seed, (), range(first, first + len(part)), denoiser.device)
        most = steps_of_rows(canvas, greedy, steps)
        filled = fill(denoiser, canvas, greedy, most, randomness, process=process, critic=critic)
        answers += (filled.tokens == tokens).all(1).tolist()
    return answers
