"""Student trajectories with what a gradient needs: the states it moved from, and which positions each move revealed.

All of them are `students.fill.fill` on the canvas of a training batch, whose prompts, suffixes and padding stay as they
are. Nothing here is differentiable: a loss runs the student again on the recorded states. All randomness is in one
stream a row, so a row's trajectory does not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from students.fill import Pass, fill
from students.samplers.at_once import AtOnce
from students.samplers.planned import PlannedSampler
from students.samplers.random_start import random_tokens
from students.samplers.sampler import Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.host import learned
from teachers.positions import on_device
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


@dataclass
class Trajectory:
    """M recorded moves of B rows.

    Attributes:
        states: (B, M, L) the canvas before each move.
        revealed: (B, M, L) True where the move gave an open position its token.
        sample: (B, L) clean tokens; a revealed position holds the token that its move drew.
        time: (B,) t of the last recorded state.
        next_time: (B,) t after the step that the sampler would make from it.
        features: (N, H) what the student's head read where the last move revealed, None where it revealed nothing.
    """

    states: Tensor
    revealed: Tensor
    sample: Tensor
    time: Tensor
    next_time: Tensor
    features: Tensor | None = None


def complete(denoiser: Denoiser, canvas: Canvas, randomness: RowStreams) -> tuple[Tensor, Tensor | None]:
    """A token from p(x₀ | z) for every open position, in one pass; drawn exactly.

    Returns:
        (B, L) tokens; (N, H) what the head read at the open positions, None where there are none.
    """
    passes: list[Pass] = []
    tokens = fill(denoiser, canvas, AtOnce(), 1, randomness, record=passes.append).tokens
    return tokens, passes[0].features if passes else None


def one_move(student: Denoiser, canvas: Canvas, randomness: RowStreams, random_share: float = 0.0) -> Trajectory:
    """All masked → x in a single move (Di[M]O, 2503.15457).

    Args:
        random_share: of the open positions, rounded to whole ones, that start with a uniformly drawn token in place of
            the mask; the move gives them a new one all the same.
    """
    time = torch.ones(len(canvas), dtype=torch.float64, device=canvas.device)
    start = replace(canvas, time=time)
    if random_share > 0:
        start = replace(start, tokens=random_start(start, random_share, student.spec, randomness))
    sample, features = complete(student, start, randomness)
    return Trajectory(start.tokens[:, None], start.open[:, None], sample, time, torch.zeros_like(time), features)


def random_start(canvas: Canvas, share: float, spec: DenoiserSpec, randomness: RowStreams) -> Tensor:
    """Put uniformly drawn tokens, never the mask, at a rounded ``share`` of each row's open positions: (B, L)."""
    draws = uniform(randomness, len(canvas), 2, canvas.length, real=canvas.real)
    # 1. rank the open positions of a row at random, the others behind them
    rank = draws[:, 0].masked_fill(~canvas.open, torch.inf).argsort(1).argsort(1)
    # 2. the first ones are replaced
    chosen = canvas.open & (rank < (share * canvas.open.sum(1, keepdim=True)).round())
    return torch.where(chosen, random_tokens(draws[:, 1], spec), canvas.tokens)


def from_data(
    student: Denoiser, process: MaskedProcess, labels: Tensor, canvas: Canvas, t: Tensor, randomness: RowStreams
) -> Trajectory:
    """A real row masked to time t, and a full draw from it: the generator of IDLM (2602.19066, ε = (x_t, t)).

    Args:
        labels: (B, L) clean tokens. canvas: what of them is open. t: (B,).
    """
    state = process.corrupt(labels, canvas, t, student.spec.mask_id, randomness)
    sample, features = complete(student, state, randomness)
    return Trajectory(state.tokens[:, None], state.open[:, None], sample, t, torch.zeros_like(t), features)


def two_moves(
    student: Denoiser, process: MaskedProcess, canvas: Canvas, tau: Tensor, randomness: RowStreams
) -> Trajectory:
    """All masked → z_τ → x in two ancestral moves (DiDi-Instruct's intermediate-state matching, 2509.25035).

    Args:
        tau: (B,) times of the intermediate state.
    """
    first = canvas.open & (uniform(randomness, *canvas.tokens.shape, real=canvas.real) < process.alpha(tau)[:, None])
    rest = canvas.open & ~first
    learned(first, rest)  # at once, before the passes that ask for them
    middle, _ = complete(student, replace(canvas, open=first, time=torch.ones_like(tau)), randomness)
    sample, features = complete(student, replace(canvas, tokens=middle, open=rest, time=tau), randomness)
    states, revealed = torch.stack([canvas.tokens, middle], 1), torch.stack([first, rest], 1)
    return Trajectory(states, revealed, sample, tau, torch.zeros_like(tau), features)


def k_step(
    student: Denoiser,
    process: MaskedProcess,
    canvas: Canvas,
    sampler: Sampler,
    steps: list[int],
    randomness: RowStreams,
) -> Trajectory:
    """A state of the student's own K-step sampler, and a full draw from it.

    Each row draws K from ``steps`` and how many of its steps, 0 … K−1, are made before the recorded state, so the
    student is trained on exactly the states it will meet when sampled with these step counts. Of a sampler that decides
    itself how many passes a row takes, all states that the row went through are equally likely. Of a text whose blocks
    have steps of their own, all of these count.
    """
    sampler = sampler.fitted(student)
    draws = uniform(randomness, len(canvas), 2)
    budget = on_device(steps, canvas.device)[(draws[:, 0] * len(steps)).long()]
    if sampler.adaptive:
        states, made, total = _visited(student, process, canvas, sampler, budget, max(steps), draws[:, 1], randomness)
    else:
        total = sampler.transitions_of(canvas, student, budget)
        made = (draws[:, 1] * total).long()
        # the last transition is never made
        most = max(steps) - 1 if sampler.budget == "text" else max(steps)
        states = fill(student, canvas, sampler, budget, randomness, process=process, until=made, passes=most).canvas
    time, next_time = 1 - made / total.double(), 1 - (made + 1) / total.double()
    sample, features = complete(student, replace(states, time=time), randomness)
    return Trajectory(states.tokens[:, None], states.open[:, None], sample, time, next_time, features)


def redrawn(student: Denoiser, canvas: Canvas, trajectory: Trajectory, randomness: RowStreams) -> Trajectory:
    """The same single move with another sample: what the student, as it is now, draws from the recorded state.

    Args:
        canvas: what the trajectory was written on.
    """
    (tokens,), (open_,) = trajectory.states.unbind(1), trajectory.revealed.unbind(1)
    state = replace(canvas, tokens=tokens, open=open_, time=trajectory.time)
    sample, features = complete(student, state, randomness)
    return replace(trajectory, sample=sample, features=features)


def on_the_way(
    student: Denoiser,
    process: MaskedProcess,
    canvas: Canvas,
    sampler: Sampler,
    steps: list[int],
    given: Tensor,
    randomness: RowStreams,
) -> Canvas:
    """A state of the student's own K-step sampler while it writes given tokens: only the order is the student's.

    Each row draws K from ``steps`` and one of its passes. A rule that looks at no prediction asks no network.

    Args:
        given: (B, L) tokens to write.
    """
    sampler = sampler.fitted(student)
    draws = uniform(randomness, len(canvas), 2)
    budget = on_device(steps, canvas.device)[(draws[:, 0] * len(steps)).long()]
    if not isinstance(sampler, PlannedSampler) or sampler.stop:
        return _visited(student, process, canvas, sampler, budget, max(steps), draws[:, 1], randomness, given)[0]
    # 1. when each position is written, and how many of the transitions are made, but never the last that writes
    order = sampler.order(canvas, student, budget, process, randomness).masked_fill(~canvas.open, -1)
    made = (draws[:, 1] * sampler.transitions_of(canvas, student, budget)).long()
    left = canvas.open & (order >= torch.minimum(made, order.amax(1))[:, None])
    # 2. what they write
    tokens = torch.where(canvas.open & ~left, given, canvas.tokens)
    return replace(canvas, tokens=tokens, open=left)


def _visited(
    student: Denoiser,
    process: MaskedProcess,
    canvas: Canvas,
    sampler: Sampler,
    budget: Tensor,
    most: int,
    uniforms: Tensor,
    randomness: RowStreams,
    given: Tensor | None = None,
) -> tuple[Canvas, Tensor, Tensor]:
    """One of the states that each row went through, how many passes it had made, and how many it made in all."""
    recorder = StateRecorder(canvas, sampler.most_transitions(canvas.length, most))
    filled = fill(
        student, canvas, sampler, budget, randomness, process=process, passes=most, given=given, record=recorder
    )
    passes = filled.nfe.clamp(min=1)
    made, row = (uniforms * passes).long(), torch.arange(len(canvas), device=canvas.device)
    open_ = canvas.open & ~recorder.written_before()[row, made]
    return replace(canvas, tokens=recorder.states[row, made], open=open_), made, passes


class StateRecorder:
    """What `fill` went through, pass by pass.

    Attributes:
        states: (B, M, L) the canvas before each pass; the finished one where a row took no pass any more.
        commits: (B, M, L) True where the pass gave an open position its token.
        features: (B, M, L, H) what the head read at the positions that were asked, 0 elsewhere; None unless kept.
    """

    def __init__(self, canvas: Canvas, passes: int, keep_features: bool = False):
        self.states = canvas.tokens[:, None].repeat(1, passes, 1)
        self.commits = torch.zeros_like(self.states, dtype=torch.bool)
        self.features: Tensor | None = None
        self.keep_features = keep_features

    def __call__(self, one: Pass) -> None:
        """See `students.fill.fill`."""
        rows, n = one.asked.rows, one.number
        self.commits[rows, n] = one.commit
        self.states[rows, n] = one.before.tokens  # at first not the canvas that was given, if the rule changed it
        self.states[rows, n + 1 :] = one.after()[:, None]
        if self.keep_features:
            if self.features is None:
                self.features = one.features.new_zeros(*self.states.shape, one.features.shape[-1])
            at = torch.zeros_like(self.commits[:, n])
            at[rows] = one.asked.positions
            self.features[:, n][at] = one.features

    def written_before(self) -> Tensor:
        """(B, M, L) True where an earlier pass gave a position its token."""
        return self.commits.cumsum(1) > self.commits
