"""Fill a canvas in K passes: the one loop behind sampling, evaluation, generation and every training rollout.

A pass asks the denoiser at some open positions, draws tokens there and commits some of them. A *rule*
(students/samplers) says which positions; how tokens are drawn stands beside it (students/drawing.py); who wants to know
what happened, such as a gradient, brings a recorder. Nothing here is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from students.drawing import Tokens
from students.samplers.length import restored, trimmed
from students.samplers.sampler import Sampler
from students.samplers.work import LOG_LINEAR, Asked, Work
from students.session import Session
from teachers.canvas import Canvas
from teachers.chunks import scatter
from teachers.denoiser import Denoiser, end_ids
from teachers.errors import UserError
from teachers.host import learned
from teachers.process import MaskedProcess
from teachers.randomness import Randomness


@dataclass(frozen=True)
class Filled:
    """A canvas that was filled, and what that cost.

    Attributes:
        canvas: as it is now; nothing is open unless the filling was to end early.
        nfe: (B,) int64, forward passes of the denoiser that each row took.
        critic_nfe: (B,) int64, passes of any other network (discriminator, verifier).
        length_nfe: (B,) int64, passes of the denoiser before these, which found out the text's length; None where
            nothing looked for it.
        query_tokens: tokens sent through the denoiser, all rows together: L for each counted pass, or what of them the
            session's cache does not hold.
        log_prob: (B,) float64 nats, Σ log q(token | canvas before its pass) over what was written, as
            `SourceDenoiser.kl_bound` takes it; of given tokens, in the order that the rule chose. None where the
            tokens' law is another (positions were chosen by what was drawn, a discriminator chose, draws are not
            exact, a cache is an approximation), and for random starts.
    """

    canvas: Canvas
    nfe: Tensor
    critic_nfe: Tensor
    query_tokens: int
    log_prob: Tensor | None
    length_nfe: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(B, L) int64."""
        return self.canvas.tokens


@dataclass(frozen=True)
class Pass:
    """One pass, as a recorder sees it.

    Attributes:
        number: n, from 0.
        asked: which R rows took it, and at which N positions tokens were drawn.
        before: these rows as the denoiser saw them.
        commit: (R, L) the positions that were committed.
        features: (N, H) what the head read.
        drawn: the N tokens, and their log-probabilities.
    """

    number: int
    asked: Asked
    before: Canvas
    commit: Tensor
    features: Tensor
    drawn: Tokens

    def after(self) -> Tensor:
        """(R, L) tokens of these rows after the pass."""
        return self.asked.written(self.before, self.drawn.tokens, self.commit)


@torch.no_grad()
def fill(
    denoiser: Denoiser,
    canvas: Canvas,
    sampler: Sampler,
    steps: int | Tensor,
    randomness: Randomness,
    *,
    process: MaskedProcess = LOG_LINEAR,
    critic: torch.nn.Module | None = None,
    until: Tensor | None = None,
    given: Tensor | None = None,
    uniforms: Tensor | None = None,
    passes: int | None = None,
    record: Callable[[Pass], None] | None = None,
) -> Filled:
    """Write every open position of a canvas; all else (prompt, suffix, infilling context, padding) is kept.

    Args:
        sampler: the rule, and how tokens are drawn.
        steps: reverse transitions, (B,) or a number for all rows; no row takes more passes than this, nor more than it
            has open positions (unless the rule throws candidates away, or edits what it has written).
        randomness: the only source of it. With `RowStreams` a row's text does not depend on the others.
        critic: for samplers that ask one.
        until: (B,) transitions that each row makes; then it stays as it is. None for all of them.
        given: (B, L) tokens to write instead of drawing any: then only the order is the denoiser's.
        uniforms: (B, L) what a position's token is drawn with, whatever the pass; None for fresh draws in every pass.
        passes: the most of any row of any process, where rows take different ``steps``: so many are made where they
            are collective, and the host need not read these. None for the largest of ``steps``.
        record: told of every pass.

    Raises:
        UserError: no steps, a denoiser without a mask, or a sampler that does not fit it, or without the critic that
            it asks.
    """
    if isinstance(steps, int):
        each, steps = [steps], torch.full((len(canvas),), steps, device=canvas.device)
    elif passes is None:
        each = learned(steps)[0].tolist()
    else:  # `until` leaves out what is no pass
        each = [max(1, passes + (until is not None))]
    if min(each, default=1) < 1:
        raise UserError(f"steps is {min(each)}; a sampler needs at least 1, set a positive number")
    denoiser.spec.check_mask()
    sampler.check(critic)
    sampler = sampler.fitted(denoiser)
    most = max(each, default=0) if len(canvas) else 0
    passes = most if passes is None else passes
    session = Session(denoiser, canvas, sampler.most_transitions(canvas.length, most), sampler.cache)
    start = sampler.start(canvas, denoiser.spec, randomness)
    work = Work(session, start, steps, process, randomness, critic, until, given, uniforms, passes)
    total = torch.zeros(len(canvas), dtype=torch.float64, device=canvas.device)
    for number in range(sampler.begin(work)):
        work.number = number
        asked = sampler.ask(work)
        if asked is None:
            if denoiser.collective:
                sampler.idle(work)
            continue
        before = work.rows(asked)
        block = None if sampler.cache is None else work.blocks.around(asked.rows, asked.positions)
        features = session.features(before, asked.rows, asked.positions, block)
        drawn, commit = sampler.settle(work, asked, before, features)
        work.write(asked, before, drawn.tokens, commit)
        log_prob = scatter(drawn.log_prob.double(), asked.positions)
        total[asked.rows] += torch.where(commit, log_prob, 0.0).sum(1)
        if record is not None:
            record(Pass(number, asked, before, commit, features, drawn))
    known = sampler.cache is None and (given is not None or (sampler.blind and sampler.exact))
    log_prob = total if known else None
    return Filled(work.canvas, session.nfe, session.critic_nfe, session.query_tokens, log_prob)


@torch.no_grad()
def fill_to_length(
    denoiser: Denoiser,
    canvas: Canvas,
    sampler: Sampler,
    steps: int | Tensor,
    randomness: Randomness,
    *,
    process: MaskedProcess = LOG_LINEAR,
    critic: torch.nn.Module | None = None,
) -> Filled:
    """`fill`, in rows as long as ``sampler.length`` finds that their texts need; what follows is end tokens.

    Args:
        canvas: as long as texts may be at most.

    Raises:
        UserError: see `fill` and `students.samplers.length.Length.sized`.
    """
    if sampler.length is None:
        return fill(denoiser, canvas, sampler, steps, randomness, process=process, critic=critic)
    sized = sampler.length.sized(denoiser, canvas)
    rows = sized.canvas if sampler.inserts else trimmed(sized.canvas)
    filled = fill(denoiser, rows, sampler, steps, randomness, process=process, critic=critic)
    whole = restored(filled.canvas, canvas, end_ids(denoiser)[0])
    return replace(filled, canvas=whole, log_prob=None, length_nfe=sized.nfe)
