"""Random numbers as a pure function of (seed, key, row).

A training rollout draws from `RowStreams`: one independent stream for each row of the *global* batch, seeded by the
run's seed, the update number and the row's global index. Nothing depends on how many processes or micro-batches the
rows are spread over, and resuming a run needs no generator state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.ops.parts import reduced
from teachers.positions import at


def generator_of(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for a key of whole numbers; different keys give independent ones."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


class RowStreams:
    """Independent generators, one a row.

    Args:
        seed: the run's seed.
        key: what the draws are for, e.g. ``(update,)``; different keys give independent streams.
        rows: global indices of the rows that this process holds.
        device: where the numbers are drawn and returned.
    """

    def __init__(self, seed: int, key: Sequence[int], rows: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.generators = [generator_of(seed, len(key), *key, row, device=self.device) for row in rows]

    def __len__(self) -> int:
        return len(self.generators)

    def take(self, rows: Tensor) -> RowStreams:
        """The streams of some rows, shared with this object: drawing from one advances the other."""
        taken = object.__new__(RowStreams)
        taken.device = self.device
        taken.generators = [self.generators[i] for i in rows.tolist()]
        return taken

    def split(self, parts: int) -> RowStreams:
        """``parts`` new streams for each row, row by row, seeded by what the row's own draws next."""
        new = object.__new__(RowStreams)
        new.device, new.generators = self.device, []
        for own in self.generators:
            seeds = torch.randint(2**63 - 1, (parts,), generator=own, device=self.device)
            new.generators += [torch.Generator(self.device).manual_seed(seed) for seed in seeds.tolist()]
        return new


Randomness = torch.Generator | RowStreams


def uniform(
    generator: Randomness, *shape: int, dtype: torch.dtype = torch.float64, real: Tensor | None = None
) -> Tensor:
    """Uniform draws in [0, 1) of ``shape``, whose first dimension is the rows; float64 unless told otherwise.

    Args:
        real: (B, L), False where a token is padding; None where none is. A row's own stream then draws for its real
            tokens alone, the last L numbers of the shape being those of its tokens: padding changes none of them.
    """
    if real is not None and isinstance(generator, RowStreams) and shape[0] > 0:
        return _around_padding(generator, shape, dtype, real)
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    if shape[0] != len(generator):
        raise ValueError(f"asked for {shape[0]} rows of random numbers from {len(generator)} streams")
    if shape[0] == 0:
        return torch.empty(shape, dtype=dtype, device=generator.device)
    draws = [torch.rand(shape[1:], generator=g, dtype=dtype, device=generator.device) for g in generator.generators]
    return torch.stack(draws)


def _around_padding(streams: RowStreams, shape: tuple[int, ...], dtype: torch.dtype, real: Tensor) -> Tensor:
    """Draws of every row for its real tokens, and for what stands before its tokens; 0 at padding."""
    before = torch.ones(len(real), shape[-1] - real.shape[1], dtype=torch.bool, device=real.device)
    drawn, out = torch.cat([before, real], 1), torch.zeros(shape, dtype=dtype, device=streams.device)
    for row, where in enumerate(drawn):
        one = streams.take(torch.tensor([row]))
        out[row, ..., where] = uniform(one, 1, *shape[1:-1], int(where.sum()), dtype=dtype)[0]
    return out


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
        cumulative = log_probs.double().softmax(-1).cumsum_(-1)
        target = uniforms.unsqueeze(-1) * cumulative[..., -1:]
        # right=True: a token of zero width can not be hit, even by u = 0
        return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=log_probs.shape[-1] - 1)

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
