"""Trajectories of adaptive samplers with what a policy gradient needs: every state, and what each pass committed.

What a position's token is drawn with is drawn beforehand, from the row's own stream, and serves whatever pass commits
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from students.fill import fill
from students.rollout import StateRecorder
from students.samplers.sampler import Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


@dataclass
class AdaptiveTrajectory:
    """At most M passes of B rows.

    Attributes:
        states: (B, M, L) the canvas before each pass; the finished one where no pass was needed any more.
        commits: (B, M, L) True where the pass gave an open position its token.
        sample: (B, L) clean tokens; a position holds the token that its pass drew.
        steps: (B,) int64 passes made.
        features: (B, M, L, H) what the student's head read at open positions, 0 elsewhere; None unless kept.
    """

    states: Tensor
    commits: Tensor
    sample: Tensor
    steps: Tensor
    features: Tensor | None = None


def adaptive(
    student: Denoiser,
    process: MaskedProcess,
    canvas: Canvas,
    sampler: Sampler,
    steps: int,
    randomness: RowStreams,
    together: int = 1,
    keep_features: bool = False,
) -> AdaptiveTrajectory:
    """Fill canvases in at most ``steps`` passes, the last of which commits everything.

    Args:
        sampler: planner or threshold, blind to what is drawn.
        together: groups of so many consecutive rows draw their tokens with the same uniforms.
        keep_features: the student's, so that nobody has to compute them again.
    """
    rows, length = canvas.tokens.shape
    uniforms = uniform(randomness, rows, length, real=canvas.real)
    uniforms = uniforms.view(-1, together, length)[:, :1].expand(-1, together, -1).reshape(rows, length)
    recorder = StateRecorder(canvas, steps, keep_features)
    filled = fill(student, canvas, sampler, steps, randomness, process=process, uniforms=uniforms, record=recorder)
    return AdaptiveTrajectory(recorder.states, recorder.commits, filled.tokens, filled.nfe, recorder.features)


def mean_inverse_distance(commits: Tensor, steps: Tensor) -> Tensor:
    """E_{i≠j}[1 / d_Lev(τ[i], τ[j])] over the states of each trajectory, the finished row included (2508.02193).

    Between two states of equal length, of which the later one has its masks at a subset of positions, d_Lev is the
    number m of tokens committed in between: m substitutions do it, and fewer edits can not, because an insertion, a
    deletion or a substitution changes the number of masks by one at most.

    Args:
        commits: (B, M, L) what each pass wrote, until nothing was open. steps: (B,) passes.

    Returns:
        (B,), 1/tokens.
    """
    masks = commits.sum(-1).flip(1).cumsum(1).flip(1)  # (B, M) before each pass
    masks = torch.cat([masks, torch.zeros_like(masks[:, :1])], 1).double()  # all trajectories end without any
    number = torch.arange(masks.shape[1], device=masks.device)
    pairs = (number[:, None] < number) & (number <= steps[:, None])[:, None, :]
    distance = (masks[:, :, None] - masks[:, None, :]).masked_fill(~pairs, torch.inf)
    return (1 / distance).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
