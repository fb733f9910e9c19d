"""Student trajectories with what a gradient needs: the states it moved from, and which positions each move revealed.

Nothing here is differentiable: a loss runs the student again on the recorded states. All randomness is in one stream a
row, so a row's trajectory does not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from students.samplers.ancestral import reveal_transitions
from students.samplers.dilated import dilated_transitions
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, categorical, uniform

Order = Literal["random", "dilated"]
"""In which a sampler reveals the positions of a row."""


@dataclass
class Trajectory:
    """M recorded moves of B rows.

    Attributes:
        states: (B, M, L) the canvas before each move.
        revealed: (B, M, L) True where the move gave a masked position its token.
        sample: (B, L) clean tokens; a revealed position holds the token that its move drew.
        time: (B,) t of the last recorded state.
        next_time: (B,) t after the step that the sampler would make from it.
    """

    states: Tensor
    revealed: Tensor
    sample: Tensor
    time: Tensor
    next_time: Tensor


@torch.no_grad()
def move(denoiser: Denoiser, z: Tensor, reveal: Tensor, t: Tensor, randomness: RowStreams, chunks: int) -> Tensor:
    """Give the positions of ``reveal`` (B, L) tokens drawn exactly from p(x₀ | z); returns the new canvas.

    Args:
        chunks: in how many the positions go through the head, see `chunk_count`.
    """
    uniforms = uniform(randomness, *z.shape)
    z = z.clone()
    z[reveal] = draw(denoiser, z, reveal, t, uniforms[reveal], chunks)
    return z


@torch.no_grad()
def draw(denoiser: Denoiser, z: Tensor, reveal: Tensor, t: Tensor, uniforms: Tensor, chunks: int) -> Tensor:
    """One pass: a token from p(x₀ | z) for each of the N positions of ``reveal``, by its uniform (N,)."""
    features = denoiser.features_at(z, reveal, t.float() if denoiser.spec.time_conditioned else None)
    (tokens,) = in_chunks(lambda f, u: (categorical(denoiser.head(f), u),), chunks, features, uniforms)
    return tokens


def one_move(
    student: Denoiser, rows: int, length: int, randomness: RowStreams, random_share: float = 0.0
) -> Trajectory:
    """All masked → x in a single move (Di[M]O, 2503.15457).

    Args:
        random_share: of the positions, rounded to whole ones, that start with a uniformly drawn token in place of the
            mask; the move gives them a new one all the same.
    """
    z = torch.full((rows, length), student.spec.mask_id, device=randomness.device)
    if random_share > 0:
        z = random_start(z, random_share, student.spec.mask_id, student.spec.vocabulary, randomness)
    everything = torch.ones_like(z, dtype=torch.bool)
    time = torch.ones(rows, dtype=torch.float64, device=z.device)
    sample = move(student, z, everything, time, randomness, chunk_count(z.numel(), student.spec.vocabulary))
    return Trajectory(z[:, None], everything[:, None], sample, time, torch.zeros_like(time))


def random_start(z: Tensor, share: float, mask_id: int, vocabulary: int, randomness: RowStreams) -> Tensor:
    """Put uniformly drawn tokens, never the mask, at round(share · L) random positions of each row of (B, L) ``z``."""
    draws = uniform(randomness, len(z), 2, z.shape[1])
    chosen = draws[:, 0].argsort(1).argsort(1) < round(share * z.shape[1])
    tokens = (draws[:, 1] * (vocabulary - 1)).long()
    return torch.where(chosen, tokens + (tokens >= mask_id), z)


def from_data(student: Denoiser, process: MaskedProcess, real: Tensor, t: Tensor, randomness: RowStreams) -> Trajectory:
    """A real row masked to time t, and a full draw from it: the generator of IDLM (2602.19066, ε = (x_t, t)).

    Args:
        real: (B, L) clean tokens. t: (B,).
    """
    z = process.corrupt(real, t, student.spec.mask_id, randomness)
    masked = z == student.spec.mask_id
    sample = move(student, z, masked, t, randomness, chunk_count(z.numel(), student.spec.vocabulary))
    return Trajectory(z[:, None], masked[:, None], sample, t, torch.zeros_like(t))


def two_moves(
    student: Denoiser, process: MaskedProcess, tau: Tensor, length: int, randomness: RowStreams
) -> Trajectory:
    """All masked → z_τ → x in two ancestral moves (DiDi-Instruct's intermediate-state matching, 2509.25035).

    Args:
        tau: (B,) times of the intermediate state.
    """
    rows = len(tau)
    start = torch.full((rows, length), student.spec.mask_id, device=tau.device)
    first = uniform(randomness, rows, length) < process.alpha(tau)[:, None]
    chunks = chunk_count(start.numel(), student.spec.vocabulary)
    middle = move(student, start, first, torch.ones_like(tau), randomness, chunks)
    sample = move(student, middle, ~first, tau, randomness, chunks)
    return Trajectory(
        torch.stack([start, middle], 1), torch.stack([first, ~first], 1), sample, tau, torch.zeros_like(tau)
    )


def k_step(
    student: Denoiser,
    process: MaskedProcess,
    steps: list[int],
    length: int,
    randomness: RowStreams,
    order: Order = "random",
) -> Trajectory:
    """A state of the student's own K-step sampler, and a full draw from it.

    Each row draws K from ``steps`` and how many of its steps, 0 … K−1, are made before the recorded state, so the
    student is trained on exactly the states it will meet when sampled with these step counts.

    Where the student's passes are collective, every process makes max(steps) of them, however its rows drew.

    Args:
        order: of the sampler: "random", the ancestral one, or "dilated" (students/samplers/dilated.py).
    """
    rows, device = len(randomness), randomness.device
    draws = uniform(randomness, rows, 2)
    budget = torch.tensor(steps, device=device)[(draws[:, 0] * len(steps)).long()]
    made = (draws[:, 1] * budget).long()
    z = torch.full((rows, length), student.spec.mask_id, device=device)
    if order == "dilated":
        transition = dilated_transitions(z == student.spec.mask_id, budget, randomness, process)
    else:
        transition = reveal_transitions(z.shape, budget, randomness, process)
    chunks = chunk_count(z.numel(), student.spec.vocabulary)  # of all rows, also where only a few are going
    for step in range(max(steps) - 1):
        going = ((step < made) & (transition == step).any(1)).nonzero().squeeze(1)
        if len(going) == 0:
            if not student.collective:
                continue
            nothing = torch.zeros_like(z[:1], dtype=torch.bool)  # a pass for the other processes' sake
            draw(student, z[:1], nothing, torch.ones_like(draws[:1, 0]), draws[0, :0], chunks)
            continue
        t = 1 - step / budget[going].double()
        z[going] = move(student, z[going], transition[going] == step, t, randomness.take(going), chunks)
    masked = z == student.spec.mask_id
    time, next_time = 1 - made / budget.double(), 1 - (made + 1) / budget.double()
    sample = move(student, z, masked, time, randomness, chunks)
    return Trajectory(z[:, None], masked[:, None], sample, time, next_time)
