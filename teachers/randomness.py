"""Random numbers as a pure function of (seed, key, row).

A training rollout draws from `RowStreams`: one independent stream for each row of the *global* batch, seeded by the
run's seed, the update number and the row's global index. Nothing depends on how many processes or micro-batches the
rows are spread over, and resuming a run needs no generator state.

A stream is SplitMix64 (Steele, Lea and Flood 2014, with the constants of Vigna's splitmix64.c): number n of the one
with seed s is a hash of s + (n + 1) · γ. So all numbers of all rows are a few operations on whole numbers, with no
generator to make or to keep for a row, and the bits are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.ops.draw import hit
from teachers.ops.parts import reduced
from teachers.positions import at

GAMMA = -0x61C8864680B583EB
"""0x9E3779B97F4A7C15 as int64: 2⁶⁴ over the golden ratio, odd."""
MULTIPLIERS = (30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)
"""Shifts, and 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB as int64."""


def seed_of(*key: int) -> int:
    """63 bits for a key of whole numbers; different keys give independent ones."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_of(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for a key of whole numbers; different keys give independent ones."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def split_mix(seeds: Tensor | int, number: Tensor) -> Tensor:
    """Number n ≥ 0 of the streams with these seeds: int64 of any shape, each of 64 random bits."""
    bits = (number + 1).mul_(GAMMA).add(seeds)
    for shift, multiplier in MULTIPLIERS:
        bits = bits.bitwise_xor_(_shifted(bits, shift)).mul_(multiplier)
    return bits.bitwise_xor_(_shifted(bits, 31))


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Bits of int64 to the right, zeros following."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


def _as_uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """64 bits → a number in [0, 1), of as many of them as its type can tell: 53, or 24 in float32."""
    places = 53 if dtype == torch.float64 else 24
    return _shifted(bits, 64 - places).to(dtype).mul_(2.0**-places)


def _numbers(rows: Sequence[int], device: torch.device | str) -> Tensor:
    """(R,) int64; a range is made on the device, and need not be sent there."""
    if isinstance(rows, range):
        return torch.arange(rows.start, rows.stop, rows.step, device=device)
    return torch.tensor(rows, dtype=torch.int64, device=device)


class RowStreams:
    """Independent streams of random numbers, one a row.

    Args:
        seed: the run's seed.
        key: what the draws are for, e.g. ``(update,)``; different keys give independent streams.
        rows: global indices of the rows that this process holds.
        device: where the numbers are drawn and returned.

    Attributes:
        seeds: (R,) int64, where each row's stream begins.
        drawn: how many numbers each stream has given, int64; shared by all that draw from it.
        places: (R,) int64, where in ``drawn`` each row's is.
    """

    def __init__(self, seed: int, key: Sequence[int], rows: Sequence[int], device: torch.device | str = "cpu"):
        self._begin(split_mix(seed_of(seed, len(key), *key), _numbers(rows, device)))

    def _begin(self, seeds: Tensor) -> None:
        self.seeds, self.drawn = seeds, torch.zeros_like(seeds)
        self.places = torch.arange(len(seeds), device=seeds.device)

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self.seeds.device

    def take(self, rows: Tensor) -> RowStreams:
        """The streams of some rows, none twice, shared with this object: drawing from one advances the other."""
        taken = object.__new__(RowStreams)
        taken.seeds, taken.drawn, taken.places = self.seeds[rows], self.drawn, self.places[rows]
        return taken

    def split(self, parts: int) -> RowStreams:
        """``parts`` new streams for each row, row by row, seeded by what the row's own draws next."""
        new = object.__new__(RowStreams)
        new._begin(self.bits(torch.arange(parts, device=self.device).expand(len(self), -1), parts).flatten())
        return new

    def bits(self, ahead: Tensor, count: int | Tensor) -> Tensor:
        """Numbers ahead of what each row has drawn, of which it then has drawn ``count`` more: int64.

        Args:
            ahead: (R, …) int64. count: (R,), or the same for all rows.
        """
        drawn = self.drawn[self.places]
        self.drawn[self.places] = drawn + count
        each = (len(self), *[1] * (ahead.dim() - 1))
        return split_mix(self.seeds.view(each), drawn.view(each) + ahead)


Randomness = torch.Generator | RowStreams


def uniform(
    generator: Randomness, *shape: int, dtype: torch.dtype = torch.float64, real: Tensor | None = None
) -> Tensor:
    """Uniform draws in [0, 1) of ``shape``, whose first dimension is the rows; float64 unless told otherwise.

    Args:
        real: (B, L), False where a token is padding; None where none is. A row's own stream then draws for its real
            tokens alone, the last L numbers of the shape being those of its tokens: padding changes none of them.
    """
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    if shape[0] != len(generator):
        raise ValueError(f"asked for {shape[0]} rows of random numbers from {len(generator)} streams")
    if real is not None:
        return _around_padding(generator, shape, dtype, real)
    return _of_streams(generator, shape, dtype)


def _of_streams(streams: RowStreams, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draws of every row for all of the shape."""
    count = math.prod(shape[1:])
    ahead = torch.arange(count, device=streams.device).expand(shape[0], -1)
    return _as_uniform(streams.bits(ahead, count), dtype).view(shape)


def _around_padding(streams: RowStreams, shape: tuple[int, ...], dtype: torch.dtype, real: Tensor) -> Tensor:
    """Draws of every row for its real tokens, and for what stands before its tokens; 0 at padding."""
    # 1. where in a line of the shape each number of the row is, and how many a line has: (B, 1, N), (B, 1, 1)
    before = torch.ones(len(real), shape[-1] - real.shape[1], dtype=torch.bool, device=real.device)
    where = torch.cat([before, real], 1)[:, None]
    place, size = where.long().cumsum(-1) - 1, where.sum(-1, keepdim=True)
    # 2. line by line
    lines = math.prod(shape[1:-1])
    ahead = torch.arange(lines, device=real.device)[:, None] * size + place
    drawn = _as_uniform(streams.bits(ahead, lines * size.view(-1)), dtype)
    return (drawn * where).view(shape)


def of_rows(randomness: Randomness, rows: Tensor) -> Randomness:
    """What some rows draw from: their own streams, or the one generator of all."""
    return randomness.take(rows) if isinstance(randomness, RowStreams) else randomness


def uniform_at(randomness: Randomness, where: Tensor, count: int, real: Tensor | None = None) -> Tensor:
    """Uniform draws in [0, 1) for the ``count`` True positions of ``where`` (R, L), in row-major order: (count,).

    A row's own stream draws for all of its positions, so that what one position gets does not depend on the others.

    Args:
        real: as of `uniform`.
    """
    if isinstance(randomness, torch.Generator):
        return uniform(randomness, count)
    return at(uniform(randomness, *where.shape, real=real), where)


def beta(generator: Randomness, rows: int, a: int, b: int) -> Tensor:
    """Draws (rows,) from Beta(a, b) for whole a, b ≥ 1: the a-th smallest of a+b−1 uniforms has exactly that law."""
    return uniform(generator, rows, a + b - 1).sort(dim=1).values[:, a - 1]


def categorical(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Exact categorical draws by inverting the cumulative distribution in float64.

    One uniform a position. With 53 bits, a token of probability p is drawn with probability p to within 1e-16: no
    truncated tail, unlike float32 Gumbel noise (methods: Zheng et al. 2409.02908).

    Args:
        log_probs: (..., V), normalised or not; −∞ means never.
        uniforms: (...), in [0, 1), float64.

    Returns:
        (...) int64 tokens.
    """

    def of_rows(log_probs: Tensor, uniforms: Tensor) -> Tensor:
        return hit(log_probs.double().softmax(-1).cumsum_(-1), uniforms)[0].squeeze(-1)

    return reduced(of_rows, log_probs, uniforms)


def gumbel_float32(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Categorical draws as published code makes them: argmax of float32 logits plus Gumbel noise.

    The noise can not exceed about 16.6, so tokens of small probability are never drawn. It serves to reproduce
    published figures.
    """
    noise = uniform(generator, *log_probs.shape, dtype=torch.float32)
    return (log_probs.float() - torch.log(-torch.log(noise + 1e-10) + 1e-10)).argmax(-1)


def token_or_mask_float32(log_probs: Tensor, moves: Tensor, stays: Tensor, randomness: Randomness) -> Tensor:
    """Tokens, or the mask again, as MDLM's code draws them together: the argmax of float32 probabilities over noise.

    Args:
        log_probs: (n, V). moves: (n,) the probability of any token. stays: (n,) of the mask; both up to a factor.

    Returns:
        (n,) int64 in [0, V], where V is the mask.

    Raises:
        UserError: the randomness is that of a training rollout.
    """
    generator = check_generator(randomness)
    chances = torch.cat([log_probs.double().exp() * moves[:, None], stays[:, None]], 1).float()
    noise = 1e-10 - torch.log(uniform(generator, *chances.shape, dtype=torch.float32) + 1e-10)
    return (chances / noise).argmax(-1)


def check_generator(randomness: Randomness) -> torch.Generator:
    """Refuse to draw in float32 from the streams of a training rollout."""
    if isinstance(randomness, torch.Generator):
        return randomness
    raise UserError(
        "draw 'float32-gumbel' reproduces published figures and is for evaluation only; set it in evaluate.sampler, "
        "or choose exact"
    )
