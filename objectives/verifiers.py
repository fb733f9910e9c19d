"""What a trajectory is worth: log-likelihoods in nats a token, of the finished row or pass by pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from objectives.divergences import kl, log_ratio
from objectives.elbo import masked_cross_entropy
from students.adaptive import AdaptiveTrajectory
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


def common_masks(randomness: RowStreams, length: int, draws: int, group: int) -> Tensor:
    """(B, J, L) random sets of positions, the same for all rows of a group, their sizes uniform on 1 … L, stratified.

    The mean over such a set of −log p(x₀ᵢ | the others) has the masked ELBO per token as its expectation, whatever the
    noise schedule, without the schedule's large weights.
    """
    rows = len(randomness)
    u = uniform(randomness, rows, draws, length + 1).view(-1, group, draws, length + 1)[:, :1]
    u = u.expand(-1, group, -1, -1).reshape(rows, draws, length + 1)
    stratum = torch.arange(draws, device=u.device)
    size = 1 + ((stratum + u[..., 0]) / draws * length).long().clamp(max=length - 1)
    return u[..., 1:].argsort(-1).argsort(-1) < size[..., None]


@torch.no_grad()
def masked_log_likelihood(teacher: Denoiser, sample: Tensor, masks: Tensor, process: MaskedProcess) -> Tensor:
    """Mean over sets of positions of log p_teacher(xᵢ | the others): (B, L), (B, J, L) → (B,) nats a token, float64."""
    total = torch.zeros(len(sample), dtype=torch.float64, device=sample.device)
    for masked in masks.unbind(1):
        z, size = torch.where(masked, teacher.spec.mask_id, sample), masked.double().sum(1)
        nats = masked_cross_entropy(teacher, z, timed(z, teacher, process).time, sample, masked)
        total -= nats.double().sum(1) / size
    return total / masks.shape[1]


@torch.no_grad()
def causal_log_likelihood(judge: Denoiser, sample: Tensor) -> Tensor:
    """Mean log-likelihood of each row's tokens but the first: (B, L) → (B,) nats a token, float64."""
    scored = torch.ones_like(sample, dtype=torch.bool)
    scored[:, 0] = False
    return -masked_cross_entropy(judge, sample, None, sample, scored).double().sum(1) / (sample.shape[1] - 1)


def load_judge(name: str, spec: DenoiserSpec) -> Denoiser:
    """A frozen autoregressive model over the vocabulary of ``spec``.

    Raises:
        UserError: it is not one, or can not be loaded.
    """
    judge = load_denoiser(name, mask_id=spec.mask_id).requires_grad_(False).eval()
    if judge.spec.attention != "causal" or judge.spec.vocabulary != spec.vocabulary:
        raise UserError(
            f"objective.judge {name!r} has {judge.spec.attention!r} attention and {judge.spec.vocabulary} tokens; give "
            f"an autoregressive model over the student's {spec.vocabulary}"
        )
    return judge


@torch.no_grad()
def path_log_ratio(
    teacher: Denoiser,
    student: Denoiser,
    found: AdaptiveTrajectory,
    randomness: RowStreams,
    group: int,
    process: MaskedProcess,
    marginalise: bool,
) -> Tensor:
    """log p_teacher(x_S | z) − Σ_{i∈S} log p_ν(x_i | z) of each pass: (B, M) nats a token, float64.

    S is what the pass committed. This is what it costs to commit S at once, and how far the student is from the
    teacher: the sum over passes has the expectation −KL(what is written, pass by pass ‖ teacher) [own]. The first term
    is estimated as a masked likelihood is: a random part of S, of a size uniform on 1 … |S|, is hidden and read given z
    and the rest of S. The second is read at the same positions, so that nothing is left, noise neither, where tokens
    are independent and the student is the teacher. One pass of the teacher, and of the student where its features were
    not kept, for each that was made; the random numbers are the same within a group.

    Args:
        marginalise: read not the hidden tokens that were drawn but the expectation over them, which are independent
            of everything else that is read. It leaves the gradient of the planner unbiased, not that of the tokens.
    """
    rows, passes, length = found.commits.shape
    u = uniform(randomness, rows, passes, length + 1).view(-1, group, passes, length + 1)[:, :1]
    u = u.expand(-1, group, -1, -1).reshape(rows, passes, length + 1)
    size = found.commits.sum(-1)
    hidden = 1 + (u[..., 0] * size).long()
    rank = u[..., 1:].masked_fill(~found.commits, torch.inf).argsort(-1).argsort(-1)
    read = found.commits & (rank < hidden[..., None])
    chunks = chunk_count(rows * length, teacher.spec.vocabulary)

    def ratios(theirs: Tensor, ours: Tensor, tokens: Tensor) -> tuple[Tensor]:
        theirs, ours = teacher.head(theirs), student.head(ours)
        if marginalise:
            return (-kl(ours, theirs),)
        return (log_ratio(theirs, ours).gather(-1, tokens[:, None]).squeeze(-1),)

    total = torch.zeros(rows, passes, dtype=torch.float64, device=u.device)
    for n in range(passes):
        part = (size[:, n].bool() | teacher.collective | student.collective).nonzero().squeeze(1)
        if len(part) == 0:
            break
        z, where = found.states[part, n], read[part, n]
        seen = torch.where(found.commits[part, n] & ~where, found.sample[part], z)
        theirs = teacher.features(timed(seen, teacher, process), where)
        if found.features is not None:
            ours = found.features[part, n][where]
        else:
            ours = student.features(timed(z, student, process), where)
        (ratio,) = in_chunks(ratios, chunks, theirs, ours, found.sample[part][where])
        mean = scatter(ratio, where).double().sum(1) / where.sum(1).clamp(min=1)
        total[part, n] = mean * size[part, n] / length
    return total


def timed(z: Tensor, denoiser: Denoiser, process: MaskedProcess) -> Canvas:
    """Rows (B, L) at the time at which so much is masked as in them."""
    canvas = Canvas.of(z, denoiser.spec.mask_id)
    return replace(canvas, time=process.time_of(1 - canvas.open_share()))


def at_the_end(value: Tensor, steps: Tensor, passes: int) -> Tensor:
    """Put (B,) values at each row's last pass, and zeros elsewhere: (B, passes)."""
    return torch.zeros(len(value), passes, dtype=value.dtype, device=value.device).scatter(
        1, steps[:, None] - 1, value[:, None]
    )
