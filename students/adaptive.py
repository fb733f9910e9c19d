"""Trajectories of adaptive samplers with what a policy gradient needs: every state, and what each pass committed.

Nothing here is differentiable, and every random number is drawn beforehand from the row's own stream, as in
students/rollout.py. The law is that of students/samplers/planner.py or threshold.py on an all-masked canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from students.planner import draw_commits, summary
from students.samplers.planner import planned_logits
from students.samplers.threshold import confident
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, categorical, uniform


@dataclass
class AdaptiveTrajectory:
    """At most M passes of B rows.

    Attributes:
        states: (B, M, L) the canvas before each pass; the finished one where no pass was needed any more.
        commits: (B, M, L) True where the pass gave a masked position its token.
        sample: (B, L) clean tokens; a position holds the token that its pass drew.
        steps: (B,) int64 passes made.
        features: (B, M, L, H) what the student's head read at masked positions, 0 elsewhere; None unless kept.
    """

    states: Tensor
    commits: Tensor
    sample: Tensor
    steps: Tensor
    features: Tensor | None = None


@torch.no_grad()
def adaptive(
    student: Denoiser,
    process: MaskedProcess,
    steps: int,
    length: int,
    randomness: RowStreams,
    threshold: float | None = None,
    together: int = 1,
    keep: bool = False,
) -> AdaptiveTrajectory:
    """Fill all-masked canvases in at most ``steps`` passes, the last of which commits everything.

    Where the student's passes are collective, every process makes ``steps`` of them.

    Args:
        threshold: commit by confidence (the largest probability); None to ask the student's planner.
        together: groups of so many consecutive rows draw their tokens with the same uniforms.
        keep: the student's features, so that nobody has to compute them again.
    """
    rows, mask_id = len(randomness), student.spec.mask_id
    token_draws, commit_draws = uniform(randomness, rows, length), uniform(randomness, rows, steps, length + 1)
    token_draws = token_draws.view(-1, together, length)[:, :1].expand(-1, together, -1).reshape(rows, length)
    z = torch.full((rows, length), mask_id, device=randomness.device)
    states, commits = z[:, None].repeat(1, steps, 1), torch.zeros(rows, steps, length, dtype=torch.bool).to(z.device)
    made = torch.zeros(rows, dtype=torch.int64, device=z.device)
    kept = None
    chunks = chunk_count(z.numel(), student.spec.vocabulary)

    def draw(features: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = student.head(features)
        return categorical(log_probs, uniforms), summary(log_probs)

    for n in range(steps):
        states[:, n:] = z[:, None]
        unfinished = (z == mask_id).any(1)
        going = torch.arange(rows, device=z.device) if student.collective else unfinished.nonzero().squeeze(1)
        if len(going) == 0:
            break
        part = z[going]
        masked = part == mask_id
        t = process.time_of(1 - masked.double().mean(1)).float() if student.spec.time_conditioned else None
        features = student.features_at(part, masked, t)
        if keep:
            kept = features.new_zeros(rows, steps, length, features.shape[-1]) if kept is None else kept
            at = torch.zeros(rows, length, dtype=torch.bool, device=z.device)
            at[going] = masked
            kept[:, n][at] = features
        tokens, summaries = in_chunks(draw, chunks, features, token_draws[going][masked])
        commit = masked
        if n + 1 < steps and threshold is not None:
            commit = confident(summaries[:, 1], masked, threshold)
        elif n + 1 < steps:
            logits = planned_logits(student, features, summaries, masked, steps)
            commit = draw_commits(logits, masked, commit_draws[going, n], student.repulsion)
        z[going] = torch.where(commit, part.masked_scatter(masked, tokens), part)
        commits[going, n] = commit
        made += unfinished
    return AdaptiveTrajectory(states, commits, z, made, kept)


def mean_inverse_distance(states: Tensor, mask_id: int, steps: Tensor) -> Tensor:
    """E_{i≠j}[1 / d_Lev(τ[i], τ[j])] over the states of each trajectory, the finished row included (2508.02193).

    Between two states of equal length, of which the later one has its masks at a subset of positions, d_Lev is the
    number m of tokens committed in between: m substitutions do it, and fewer edits can not, because an insertion, a
    deletion or a substitution changes the number of masks by one at most.

    Args:
        states: (B, M, L) before each pass. steps: (B,) passes.

    Returns:
        (B,), 1/tokens.
    """
    masks = (states == mask_id).sum(-1)
    masks = torch.cat([masks, torch.zeros_like(masks[:, :1])], 1).double()  # all trajectories end without any
    number = torch.arange(masks.shape[1], device=masks.device)
    pairs = (number[:, None] < number) & (number <= steps[:, None])[:, None, :]
    distance = (masks[:, :, None] - masks[:, None, :]).masked_fill(~pairs, torch.inf)
    return (1 / distance).sum((1, 2)) / pairs.sum((1, 2))
