"""Training a teacher or a judge: the masked-diffusion ELBO (2406.07524, eq. 10) and the autoregressive loss.

The ELBO has a second stage if asked (Seed Diffusion, 2508.02193): after 80% of the updates the model also learns to
undo k_t = ⌊L·a_t⌋ random edits, by −log p(x₀ | edited) at *every* position. It takes the place of the ELBO's
reconstruction term, which is zero where unmasked tokens are carried over; here none is, and the model learns that what
it reads may be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from objectives.masking import Masking, MasksConfig
from objectives.objective import LossOutput, Objective, Rollout, labels_of
from objectives.tail import Tail, weighted
from teachers.canvas import Batch, Canvas
from teachers.chunks import chunk_count, in_chunks, scatter
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.positions import at
from teachers.process import MaskedProcess
from teachers.randomness import Randomness, RowStreams, uniform
from teachers.section import Section


class EditConfig(Section):
    """The second stage of Seed Diffusion's curriculum (2508.02193).

    Attributes:
        share: of the updates, the last ones.
        rate: a_t at t = 1; a_t = rate · t.
    """

    share: float = Field(default=0.2, gt=0, le=1)  # [paper]
    rate: float = Field(default=0.1, gt=0, lt=1)  # [paper] a_t ∈ [0, 0.1]; that it is linear in t is [open]

    def first(self, updates: int) -> int:
        """The number of the first update that edits, of so many."""
        return updates - round(self.share * updates)

    def counts(self, t: Tensor, tokens: Tensor) -> Tensor:
        """k_t = ⌊L·a_t⌋ edits of rows of so many tokens (B,) at each of the times (B,): (B,) int64."""
        return (tokens.double() * self.rate * t.double()).floor().long()

    def most(self, length: int) -> int:
        """k at t = 1."""
        return int(self.counts(torch.ones(1), torch.tensor([length])))


def cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """−log p(target) of each position, in nats: (N, V), (N,) → (N,)."""
    return -log_probs.gather(-1, targets[:, None]).squeeze(-1)


def masked_cross_entropy(denoiser: Denoiser, canvas: Canvas, x0: Tensor, where: Tensor | None = None) -> Tensor:
    """Per-position −log p(x₀ᵢ | z), zero where it is not asked for; log-probabilities in chunks.

    Args:
        x0: (B, L) tokens. where: (B, L) bool; None for what is open.

    Returns:
        (B, L), nats.
    """
    where = canvas.open if where is None else where
    # 1. one pass: what the head reads at the N positions, (N, H)
    features = denoiser.features(canvas, where)
    # 2. V wide for a chunk of them at a time, (N,)
    chunks = chunk_count(where.numel(), denoiser.spec.vocabulary)
    (nats,) = in_chunks(lambda f, x: (cross_entropy(denoiser.head(f), x),), chunks, features, at(x0, where))
    # 3. back into rows, (B, L)
    return scatter(nats, where)


def edited(x0: Tensor, open_: Tensor, edits: Tensor, spec: DenoiserSpec, randomness: Randomness, most: int) -> Tensor:
    """Insert, delete or substitute a token at random, ``edits`` (B,) times one after the other: (B, L) → (B, L).

    Each edit is one of the three with equal chance, at a uniform place of the text as it then is, with a uniform token
    that is no mask and, in a substitution, not the one that is there [open]. An insertion, before a token, moves what
    follows to the right, a deletion to the left. Afterwards the text is fitted to the canvas: what has moved out is
    lost, and where fewer tokens are left, masks follow, since what would have moved in is unknown [own].

    Args:
        open_: (B, L) bool, the text; prompts, suffixes and padding stay as and where they are.
        most: at least ``edits``; as many draws are made for every row, so that a row's do not depend on its batch.
    """
    rows, length = x0.shape
    draws = uniform(randomness, rows, most, 3)
    place, words = torch.arange(length + most, device=x0.device), spec.tokens(x0.device)
    # 1. the open tokens of each row come first, in order, and masks behind them
    front = (~open_).to(torch.uint8).argsort(dim=1, stable=True)
    tokens = open_.sum(1, keepdim=True)
    row = torch.cat([x0.gather(1, front), torch.full((rows, most), spec.mask_id, device=x0.device)], 1)
    row = torch.where(place < tokens, row, spec.mask_id)
    # 2. one edit after the other
    for n in range(most):
        kind, where, what = draws[:, n, :, None].unbind(1)
        doing = n < edits[:, None]
        inserts, deletes, substitutes = (doing & ((3 * kind).long() == k) for k in range(3))
        at = (where * tokens).long()
        present = row.gather(1, at)
        # the one of the allowed tokens, in order: all that text has, but the present one when it is replaced
        number = (what * (len(words) - substitutes.long())).long()
        token = words[number + (substitutes & (number >= torch.searchsorted(words, present)))]
        mask = torch.full_like(present, spec.mask_id)
        source = place - (inserts & (place > at)).long() + (deletes & (place >= at)).long()
        row = torch.cat([row, mask], 1).gather(1, source)
        row = torch.where((inserts | substitutes) & (place == at), token, row)
        tokens = tokens + inserts.long() - deletes.long()
    # 3. back to where the open positions are
    return torch.where(open_, torch.empty_like(x0).scatter_(1, front, row[:, :length]), x0)


@dataclass
class ElboRollout(Rollout):
    """Clean rows and their corruption at t: masked, and, in the second stage, edited.

    Attributes:
        canvas: what of the rows is open.
        x0: (B, L) clean tokens.
        z: x0 masked at t, open where it is.
        edited: x0 with edits, open where the canvas is; else None.
        times: (B, L) t of each token where blocks have their own; else None, and z says that of each row.
        complement: x0 masked where z is not, open where it is; else None.
    """

    canvas: Canvas
    x0: Tensor
    z: Canvas
    edited: Canvas | None = None
    times: Tensor | None = None
    complement: Canvas | None = None

    def token_times(self) -> Tensor:
        """t of each token: (B, L), or (B, 1)."""
        if self.times is not None:
            return self.times
        assert self.z.time is not None
        return self.z.time[:, None]


class MaskedElbo(Objective[ElboRollout]):
    """E_t[ w(t) · Σ_masked −log p(x₀ᵢ | z_t) ], w = −α'/(1−α): an upper bound on −log p(x₀), in nats a token.

    With a complement it is the mean of two such estimates, of a mask m at t and of ¬m, whose weight is −α'/α. A model
    of blocks has one t a block, and the bound is Σ_b E_t[ w(t) · Σ_masked −log p(x₀ᵢ | z_t of block b, x₀ before it) ]
    (2503.09573, eq. 8): all blocks are learned in one pass, on [z_t ⊕ x₀].

    Args:
        edit: adds E_t[ Σᵢ −log p(x₀ᵢ | edited_t) ] in the second stage; `begin` says when it comes.
        masks: what else is masked, and seen; until `begin`, as at the end of training.
        tail: what counts of an answer's canvas.
    """

    needs = "rows"
    asks = ()
    group = 2  # antithetic pairs

    def __init__(
        self,
        denoiser: Denoiser,
        process: MaskedProcess,
        edit: EditConfig | None = None,
        masks: MasksConfig | None = None,
        tail: Tail | None = None,
    ):
        self.student, self.process, self.edit = denoiser, process, edit
        self.masks, self.tail = masks or MasksConfig(), tail or Tail()
        self.masking = Masking(self.masks, denoiser.spec)
        self.editing = False

    def begin(self, update: int, updates: int) -> bool:
        """Whether this update edits, and what its masks are, follows from its number."""
        self.editing = self.edit is not None and update >= self.edit.first(updates)
        self.masking.begin(update / updates)
        return False

    def rollout(self, batch: Batch, randomness: RowStreams) -> ElboRollout:
        """Corrupt real rows at antithetic times."""
        canvas, x0, spec = batch.canvas, labels_of(batch), self.student.spec
        # 1. times and masks, (B,) or (B, L), and (B, L)
        uniforms = uniform(randomness, len(batch))
        context = self.masking.context(x0, randomness)
        t = self.masking.times(uniforms, context)
        z = replace(self.process.corrupt(x0, canvas, t, spec.mask_id, randomness), context=context)
        weights = self.tail.weights(x0, canvas.open)
        if not self.editing:
            complement = self._complement(canvas, x0, z) if self.masks.complementary else None
            times = None if t.dim() == 1 else t
            return ElboRollout(canvas, x0, z, times=times, complement=complement, weights=weights)
        # 2. edits
        assert self.edit is not None
        counts = self.edit.counts(t, canvas.open.sum(1))
        tokens = edited(x0, canvas.open, counts, spec, randomness, self.edit.most(canvas.length))
        return ElboRollout(canvas, x0, z, replace(canvas, tokens=tokens, time=t), weights=weights)

    def _complement(self, canvas: Canvas, x0: Tensor, z: Canvas) -> Canvas:
        """What is unmasked in z is masked, and the other way; at the time at which so much is."""
        masked = canvas.open & ~z.open
        time = None if z.time is None else self.process.time_of(1 - self.process.alpha(z.time))
        return replace(z, tokens=torch.where(masked, self.student.spec.mask_id, x0), open=masked, time=time)

    def outline(self, canvas: Canvas) -> ElboRollout:
        """See `Objective.outline`."""
        z = replace(canvas, time=torch.ones(len(canvas), device=canvas.device))
        return ElboRollout(canvas, canvas.tokens, z, None if self.edit is None else z)

    def count(self, phase: str, rollout: ElboRollout) -> Tensor:
        """All open tokens, masked or not: the bound is per token."""
        return rollout.canvas.open.sum()

    def loss(self, phase: str, rollout: ElboRollout) -> LossOutput:
        """The bound, and in the second stage the edit loss, summed over tokens."""
        z, t, weights = rollout.z, rollout.token_times(), rollout.weights
        # 1. Σ_masked −log p(x₀ᵢ | z_t), weighted by time
        loss = weighted(masked_cross_entropy(self.student, z, rollout.x0), weights)  # (B, L)
        bound = (loss * self.process.elbo_weight(t).to(loss)).sum()
        metrics = {"masked_nats": (loss.detach().sum(), z.open.sum().to(loss))}
        # 2. the same of the complement, and the mean of both
        if rollout.complement is not None:
            rest = weighted(masked_cross_entropy(self.student, rollout.complement, rollout.x0), weights)  # (B, L)
            bound = (bound + (rest * self.process.complement_weight(t).to(rest)).sum()) / 2
            metrics["masked_nats"] = ((loss + rest).detach().sum(), rollout.canvas.open.sum().to(loss))
        # 3. Σᵢ −log p(x₀ᵢ | edited_t) at every open position
        if rollout.edited is not None:
            undone = weighted(masked_cross_entropy(self.student, rollout.edited, rollout.x0), weights).sum()
            bound = bound + undone
            metrics["edit_nats"] = (undone.detach(), rollout.edited.open.sum().to(undone))
        return LossOutput(bound, metrics)


def first_real(canvas: Canvas) -> Tensor:
    """(B, L) bool: each row's first token that is no padding."""
    real = torch.ones_like(canvas.open) if canvas.real is None else canvas.real
    return real & (real.cumsum(1) == 1)


class Autoregressive(Objective[ElboRollout]):
    """−Σ log p(xᵢ | x_{<i}): how a judge is trained. The first token has no context and is not scored.

    Args:
        tail: what counts of an answer's canvas.
    """

    needs = "rows"
    asks = ()

    def __init__(self, denoiser: Denoiser, tail: Tail | None = None):
        self.student, self.tail = denoiser, tail or Tail()

    def rollout(self, batch: Batch, randomness: RowStreams) -> ElboRollout:
        """Real rows as they are."""
        x0 = labels_of(batch)
        scored = batch.canvas.open & ~first_real(batch.canvas)
        weights = self.tail.weights(x0, batch.canvas.open)
        return ElboRollout(batch.canvas, x0, replace(batch.canvas, tokens=x0, open=scored), weights=weights)

    def outline(self, canvas: Canvas) -> ElboRollout:
        """See `Objective.outline`."""
        return ElboRollout(canvas, canvas.tokens, canvas)

    def count(self, phase: str, rollout: ElboRollout) -> Tensor:
        """Scored tokens."""
        return rollout.z.open.sum()

    def loss(self, phase: str, rollout: ElboRollout) -> LossOutput:
        """Negative log-likelihood, summed over tokens."""
        nats = masked_cross_entropy(self.student, rollout.z, rollout.x0)
        return LossOutput(weighted(nats, rollout.weights).sum())
