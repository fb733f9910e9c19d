"""What a trajectory is worth: log-likelihoods in nats a token, of the finished row or pass by pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from objectives.certainty import hidden_canvas
from objectives.divergences import kl, log_ratio
from objectives.elbo import first_real, masked_cross_entropy
from objectives.objective import timed
from objectives.tail import weighted
from students.adaptive import AdaptiveTrajectory
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform


def common_masks(randomness: RowStreams, open_: Tensor, draws: int, group: int) -> Tensor:
    """(B, J, L) random sets of open positions, the same for all rows of a group that have the same ones open.

    A row's sizes are uniform on 1 … n, its open positions, stratified. The mean over such a set of
    −log p(x₀ᵢ | the others) has the masked ELBO per token as its expectation, whatever the noise schedule, without the
    schedule's large weights.
    """
    u = shared_uniforms(randomness, draws, open_.shape[1] + 1, group)
    stratum, most = torch.arange(draws, device=u.device), open_.sum(1, keepdim=True)
    size = 1 + torch.minimum(((stratum + u[..., 0]) / draws * most).long(), most - 1)  # (B, J)
    rank = u[..., 1:].masked_fill(~open_[:, None], torch.inf).argsort(-1).argsort(-1)
    return open_[:, None] & (rank < size[..., None])


def shared_uniforms(randomness: RowStreams, draws: int, numbers: int, group: int) -> Tensor:
    """(B, draws, numbers) uniforms, of which all rows of a group have the first one's."""
    rows = len(randomness)
    u = uniform(randomness, rows, draws, numbers).view(-1, group, draws, numbers)[:, :1]
    return u.expand(-1, group, -1, -1).reshape(rows, draws, numbers)


@torch.no_grad()
def masked_log_likelihood(
    teacher: Denoiser, canvas: Canvas, sample: Tensor, masks: Tensor, process: MaskedProcess,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean over sets of positions of log p_teacher(xᵢ | the others): (B,) nats a token, float64.

    Args:
        canvas: what the sample (B, L) was written on. masks: (B, J, L).
        weights: (B, L) what each position counts, see `objectives.objective.Rollout`.
    """
    total = torch.zeros(len(sample), dtype=torch.float64, device=sample.device)
    for masked in masks.unbind(1):
        z = hidden_canvas(sample, canvas, masked, teacher.spec.mask_id, process)
        nats = weighted(masked_cross_entropy(teacher, z, sample).double(), weights)
        total -= nats.sum(1) / masked.double().sum(1).clamp(min=1)
    return total / masks.shape[1]


@torch.no_grad()
def causal_log_likelihood(judge: Denoiser, canvas: Canvas, sample: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean log-likelihood of what was written on each row but its first token: (B, L) → (B,) nats a token, float64.

    Args:
        weights: as in `masked_log_likelihood`.
    """
    scored = canvas.open & ~first_real(canvas)
    nats = masked_cross_entropy(judge, replace(canvas, tokens=sample, open=scored), sample)
    return -weighted(nats.double(), weights).sum(1) / scored.sum(1).clamp(min=1)


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
    canvas: Canvas,
    path: AdaptiveTrajectory,
    randomness: RowStreams,
    group: int,
    process: MaskedProcess,
    marginalise: bool,
    weights: Tensor | None = None,
    greedy: bool = False,
) -> Tensor:
    """log p_teacher(x_S | z) − Σ_{i∈S} log p_ν(x_i | z) of each pass: (B, M) nats a token, float64.

    S is what the pass committed. This is what it costs to commit S at once, and how far the student is from the
    teacher: the sum over passes has the expectation −KL(what is written, pass by pass ‖ teacher) [own]. The first term
    is estimated as a masked likelihood is: a random part of S, of a size uniform on 1 … |S|, is hidden and read given z
    and the rest of S. The second is read at the same positions, so that nothing is left, noise neither, where tokens
    are independent and the student is the teacher. One pass of the teacher, and of the student where its features were
    not kept, for each that was made; the random numbers are the same within a group.

    Args:
        canvas: what the path was written on.
        marginalise: read not the hidden tokens that were drawn but the expectation over them, which are independent
            of everything else that is read. It leaves the gradient of the planner unbiased, not that of the tokens.
        weights: as in `masked_log_likelihood`.
        greedy: the tokens were not drawn but are the most probable ones, so that p_ν of them is 1.
    """
    rows, passes, length = path.commits.shape
    # 1. what is hidden of each pass's commits: (B, M, L)
    u = shared_uniforms(randomness, passes, length + 1, group)
    size, written = path.commits.sum(-1), canvas.open.sum(1).clamp(min=1)
    hidden = 1 + (u[..., 0] * size).long()
    rank = u[..., 1:].masked_fill(~path.commits, torch.inf).argsort(-1).argsort(-1)
    read = path.commits & (rank < hidden[..., None])
    chunks = chunk_count(rows * length, teacher.spec.vocabulary)

    def ratios(theirs: Tensor, ours: Tensor, tokens: Tensor) -> tuple[Tensor]:
        theirs = teacher.head(theirs)
        if greedy:
            return (theirs.gather(-1, tokens[:, None]).squeeze(-1),)
        ours = student.head(ours)
        if marginalise:
            return (-kl(ours, theirs),)
        return (log_ratio(theirs, ours).gather(-1, tokens[:, None]).squeeze(-1),)

    total = torch.zeros(rows, passes, dtype=torch.float64, device=u.device)
    for n in range(passes):
        part = (size[:, n].bool() | teacher.collective | student.collective).nonzero().squeeze(1)
        if len(part) == 0:
            break
        # 2. the state of the pass with the rest of its commits, and what both networks say of the hidden part
        before, where = state_before(path, canvas, n, process).rows(part), read[part, n]
        shown = path.commits[part, n] & ~where
        seen = replace(before, tokens=torch.where(shown, path.sample[part], before.tokens), open=before.open & ~shown)
        theirs = teacher.features(timed(seen, process), where)
        ours = student.features(before, where) if path.features is None else path.features[part, n][where]
        (ratio,) = in_chunks(ratios, chunks, theirs, ours, path.sample[part][where])
        # 3. the mean over the hidden part stands for all of S; nats for each token that the row writes
        ratio = weighted(scatter(ratio, where).double(), None if weights is None else weights[part])
        mean = ratio.sum(1) / where.sum(1).clamp(min=1)
        total[part, n] = mean * size[part, n] / written[part]
    return total


def state_before(path: AdaptiveTrajectory, canvas: Canvas, number: int, process: MaskedProcess) -> Canvas:
    """The rows before a pass, as the sampler saw them; nothing is open in those that did not make it."""
    written, makes = path.commits[:, :number].any(1), (number < path.steps)[:, None]
    return timed(replace(canvas, tokens=path.states[:, number], open=canvas.open & ~written & makes), process)


def at_the_end(value: Tensor, steps: Tensor, passes: int) -> Tensor:
    """Put (B,) values at each row's last pass, and zeros elsewhere: (B, passes)."""
    last = (steps - 1).clamp(min=0)[:, None]
    return torch.zeros(len(value), passes, dtype=value.dtype, device=value.device).scatter(1, last, value[:, None])
