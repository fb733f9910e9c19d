"""Representation-space MMD (2610.06648): match features of a frozen denoiser, with no critic.

A real row x^r is masked to z_t, S its masked positions. One pass of the student gives G sets of B completions. Each
set gets one reward: minus an unbiased estimate of MMD² to the law of x^r given z_t, but for the term without the
student. It reads features φ_i(x) of a frozen copy of the start on the clean, completed row:

  κ(x, x') = 1/|S|² Σ_{i,j ∈ S} w_i(x) w_j(x') k(φ_i(x), φ_j(x')),  w of mean 1: 1, or objectives/tail.py's
  r_g = 2/B Σ_b κ(x^r, x_gb) − 1/(B(B−1)) Σ_{b≠b'} κ(x_gb, x_gb')
  loss = −1/G Σ_g A_g Σ_b Σ_{i∈S} log p_ν(x_gbi | z_t),  A_g = r_g − mean of the other sets' rewards.

One real row is one problem of its own, so nothing couples the rows of a batch, and no group is needed: a reward depends
on its own row's draws alone, however the rows are spread. The log-probability is that of the one move from z_t; no
trajectory is unrolled, and a state of the student's own sampler would not do, because it has no real completion.

What the released code gets wrong and ours does not: it leaves pairs of the same position out of the generated–generated
kernel and not out of the real–generated one, so that its reward is no MMD, and does not vanish where student and data
agree; and it averages over the masked tokens of each process by itself, so the gradient depends on how rows are spread.
It reads the layer's output itself; ours goes through the model's last norm, as `Denoiser.hidden_states` does [own].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from objectives.divergences import entropy
from objectives.objective import Distillation, LossOutput, Objective, ObjectiveConfig, Rollout, labels_of
from objectives.tail import weighted
from students.rollout import one_move
from students.student import frozen, trainable_copy
from teachers.canvas import Batch, Canvas
from teachers.capability import Capability
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.randomness import RowStreams, beta, categorical, uniform

TYPICAL_ROWS = 8
"""Rows that the default bandwidth is taken from [own]; each has L(L−1)/2 pairs."""


class RepresentationMmdConfig(ObjectiveConfig):
    """Every default with its origin. The optimiser's: lr 1e-4, batch 512, 4,000 updates of a 169 M model [paper].

    Attributes:
        sets: G, sets of completions of a row; each is the others' baseline.
        draws: B, completions of a set, which repel each other.
        blocks: the features are read after so many transformer blocks; None for a third of them, rounded up.
        kernel: "rbf" = exp(−‖a−b‖²/2σ²), or "linear" = ⟨a, b⟩, which only matches means.
        observations: "token", a feature vector each, or "sequence", their mean.
        bandwidth: σ; None for the median distance between token features of one row, in rows that the start writes in
            one move. One that looked at the draws would couple the sets and bias leave-one-out; one that looked at the
            real row would give each real row a kernel of its own, which is no MMD and moves the minimum.
        clamp_time: t ~ U within.
    """

    name: Literal["representation_mmd"] = "representation_mmd"
    sets: PositiveInt = 4  # [paper]
    draws: PositiveInt = 2  # [paper]
    blocks: PositiveInt | None = None  # [paper] the 4th of 12
    kernel: Literal["rbf", "linear"] = "rbf"  # [paper]
    observations: Literal["token", "sequence"] = "token"  # [paper]
    bandwidth: float | None = Field(default=None, gt=0)  # [own] tuned by hand there: 160 of 768 dimensions, 90, 10–16
    clamp_time: tuple[float, float] = (1e-3, 1.0)  # [code]

    @model_validator(mode="after")
    def _cross_checks(self) -> RepresentationMmdConfig:
        if self.sets < 2:
            raise ValueError(f"sets is {self.sets}; the leave-one-out baseline needs at least 2")
        if self.draws < 2:
            raise ValueError(f"draws is {self.draws}; the MMD needs at least 2 completions of a set")
        low, high = self.clamp_time
        if not 0 < low < high <= 1:
            raise ValueError(f"clamp_time is {self.clamp_time}; give 0 < low < high ≤ 1")
        return self

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Hidden states after the first few blocks."""
        return frozenset({"hidden states", "blocks"})

    @property
    def counted_blocks(self) -> int:
        """Those that features are read after; see `ObjectiveConfig.counted_blocks`."""
        return self.blocks or 0

    @property
    def unrounded(self) -> bool:
        """The bandwidth is measured."""
        return self.bandwidth is None and self.kernel != "linear"

    def without_weights(self) -> RepresentationMmdConfig:
        """With a bandwidth, which is otherwise measured; see `ObjectiveConfig.without_weights`."""
        return self if self.bandwidth is not None else self.model_copy(update={"bandwidth": 1.0})

    def build(self, distillation: Distillation) -> RepresentationMmd:
        """See `ObjectiveConfig.build`."""
        return RepresentationMmd(self, distillation)


def kernel_mean(
    left: Tensor,
    right: Tensor,
    used: Tensor,
    bandwidth: float | None,
    left_weights: Tensor | None = None,
    right_weights: Tensor | None = None,
) -> Tensor:
    """κ: the mean of k over pairs of used positions, (B,); 0 for rows without any.

    Args:
        left, right: (B, L, D). used: (B, L) bool. bandwidth: σ of the RBF kernel; None for the linear one.
        left_weights, right_weights: (B, L) w; None for 1.
    """
    share = used.to(left) / used.sum(1, keepdim=True).clamp(min=1)
    ours, theirs = weighted(share, left_weights), weighted(share, right_weights)
    if bandwidth is None:
        return (torch.einsum("bl,bld->bd", ours, left) * torch.einsum("bl,bld->bd", theirs, right)).sum(-1)
    values = torch.exp(-squared_distances(left, right) / (2 * bandwidth**2))
    return torch.einsum("bi,bij,bj->b", ours, values, theirs)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """‖a_i − b_j‖² of (B, L, D) and (B, M, D): (B, L, M)."""
    squares = left.square().sum(-1)[:, :, None] + right.square().sum(-1)[:, None]
    return (squares - 2 * left @ right.transpose(1, 2)).clamp(min=0)


def median_distance(features: Tensor) -> float:
    """The median distance between two feature vectors of one row, over the rows of (B, L, D); 1 if it is 0."""
    length = features.shape[1]
    pairs = torch.ones(length, length, dtype=torch.bool, device=features.device).triu(1)
    return float(squared_distances(features, features)[:, pairs].sqrt().median()) or 1.0


def set_reward(
    real: Tensor,
    drawn: Tensor,
    used: Tensor,
    bandwidth: float | None,
    real_weights: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """r = 2/B Σ_b κ(x^r, x_b) − 1/(B(B−1)) Σ_{b≠b'} κ(x_b, x_b'): (rows,), minus MMD² but for a constant.

    Pairs within one completion are left out, as its tokens are not independent; all pairs of two completions are in.

    Args:
        real: (rows, L, D) features. drawn: (rows, B, L, D) of a set. used: (rows, L).
        real_weights: (rows, L) w of the real row, and weights: (rows, B, L) of the drawn ones; None for 1.
    """
    draws = drawn.shape[1]
    of_draw = [None] * draws if weights is None else weights.unbind(1)
    attraction = repulsion = real.new_zeros(len(real))
    for a in range(draws):
        attraction = attraction + kernel_mean(real, drawn[:, a], used, bandwidth, real_weights, of_draw[a])
        for b in range(a + 1, draws):
            pair = drawn[:, a], drawn[:, b]
            repulsion = repulsion + kernel_mean(*pair, used, bandwidth, of_draw[a], of_draw[b])
    return 2 * attraction / draws - 2 * repulsion / (draws * (draws - 1))


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_g = r_g − mean_{h≠g} r_h of (rows, G) rewards: a baseline that does not depend on the set's own draws."""
    sets = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * sets / (sets - 1)


@dataclass
class MmdRollout(Rollout):
    """Masked rows and their completions.

    Attributes:
        state: real rows, masked at t.
        drawn: (B, G·B', L) completions, set after set.
        advantage: (B, G).
        reward: (B, G), in which the weights of each text are; `weights` are the real rows'.
    """

    state: Canvas
    drawn: Tensor
    advantage: Tensor
    reward: Tensor


class RepresentationMmd(Objective[MmdRollout]):
    """The wiring; the features are drawn into the rollout as rewards, so a loss runs the student alone."""

    needs = "rows"
    asks = ("student", "extractor")

    def __init__(self, config: RepresentationMmdConfig, distillation: Distillation):
        self.config, self.student, self.process = config, distillation.student, distillation.process
        self.tail = distillation.tail
        self.extractor = frozen(trainable_copy(distillation.start))
        blocks = self.extractor.blocks()
        wanted = config.blocks or math.ceil(len(blocks) / 3)
        if wanted > len(blocks):
            raise UserError(
                f"objective.blocks is {wanted}, but the frozen network has {len(blocks)} blocks; give at most that"
            )
        del blocks[wanted:]  # they would only be computed to be thrown away
        self.bandwidth = config.bandwidth
        if config.kernel == "linear":
            self.bandwidth = None
        elif config.bandwidth is None:
            canvases = distillation.canvases(TYPICAL_ROWS, distillation.start.device)
            self.bandwidth = self._typical_distance(distillation.start, canvases)

    @torch.no_grad()
    def _typical_distance(self, start: Denoiser, canvases: Canvas) -> float:
        """`median_distance` in rows that the start writes in one move."""
        written = one_move(start, canvases, RowStreams(0, (0,), range(len(canvases)), start.device)).sample
        return median_distance(self._features(_finished(canvases, written)))

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student, and the network that features are read from."""
        return {"student": self.student, "extractor": self.extractor}

    @torch.no_grad()
    def rollout(self, batch: Batch, randomness: RowStreams) -> MmdRollout:
        """Mask real rows, complete them G·B' times, and reward each set."""
        labels, completions = labels_of(batch), self.config.sets * self.config.draws
        t = beta(randomness, len(batch), 1, 1).clamp(*self.config.clamp_time)
        state = self.process.corrupt(labels, batch.canvas, t, self.student.spec.mask_id, randomness)
        drawn = self._complete(state, uniform(randomness, *state.tokens.shape, completions))
        reward = self.rewards(labels, state, drawn, batch.canvas.open)
        weights = self.tail.weights(labels, batch.canvas.open)
        return MmdRollout(state, drawn, leave_one_out(reward), reward, weights=weights)

    def _complete(self, state: Canvas, uniforms: Tensor) -> Tensor:
        """(B, M, L) completions of (B, L) by (B, L, M) uniforms, from one pass."""
        masked = state.open
        drawn = state.tokens[:, :, None].repeat(1, 1, uniforms.shape[-1])

        def draw(features: Tensor, uniforms: Tensor) -> tuple[Tensor]:
            log_probs = self.student.head(features)
            return (torch.stack([categorical(log_probs, u) for u in uniforms.unbind(1)], 1),)

        chunks = chunk_count(masked.numel(), self.student.spec.vocabulary)
        (drawn[masked],) = in_chunks(draw, chunks, self.student.features(state, masked), uniforms[masked])
        return drawn.transpose(1, 2)

    @torch.no_grad()
    def rewards(self, real: Tensor, state: Canvas, drawn: Tensor, open_: Tensor) -> Tensor:
        """(B, G) reward of each set of ``drawn`` (B, G·B', L).

        Args:
            open_: (B, L) what was to be written, masked in the state or not.
        """
        theirs, weights = self._read(state, real, open_)
        seen = state.open if self.config.observations == "token" else state.open.any(1, keepdim=True)
        rewards = []
        for members in drawn.split(self.config.draws, dim=1):
            each, of_each = zip(*(self._read(state, x, open_) for x in members.unbind(1)), strict=True)
            of_set = None if weights is None else torch.stack(of_each, 1)
            rewards.append(set_reward(theirs, torch.stack(each, 1), seen, self.bandwidth, weights, of_set))
        return torch.stack(rewards, 1)

    @torch.no_grad()
    def _features(self, canvas: Canvas) -> Tensor:
        """(B, L, D) float."""
        hidden = self.extractor.hidden_states(canvas)
        return hidden if hidden.dtype == torch.float64 else hidden.float()

    def _read(self, state: Canvas, text: Tensor, open_: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the kernel compares of a text (B, L), and what each of that counts, None where all count alike."""
        weights = self.tail.weights(text, open_)
        observed = self._observed(self._features(_finished(state, text)), state.open, weights)
        return observed, weights if self.config.observations == "token" else None

    def _observed(self, features: Tensor, used: Tensor, weights: Tensor | None = None) -> Tensor:
        """What the kernel compares: (B, L, D), or (B, 1, D) for "sequence"."""
        if self.config.observations == "token":
            return features
        share = used.to(features) / used.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("bl,bld->bd", weighted(share, weights), features)[:, None]

    def outline(self, canvas: Canvas) -> MmdRollout:
        """See `Objective.outline`."""
        rows, (sets, draws) = len(canvas), (self.config.sets, self.config.draws)
        reward = torch.zeros(rows, sets, device=canvas.device)
        return MmdRollout(canvas, canvas.tokens[:, None].repeat(1, sets * draws, 1), reward, reward)

    def count(self, phase: str, rollout: MmdRollout) -> Tensor:
        """Drawn tokens of a set, those of all rows."""
        return rollout.state.open.sum() * self.config.draws

    def loss(self, phase: str, rollout: MmdRollout) -> LossOutput:
        """−1/G Σ_g A_g Σ_b log p_ν(x_gb), summed over rows."""
        config, state, masked = self.config, rollout.state, rollout.state.open

        def terms(features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = self.student.head(features)
            return log_probs.gather(-1, tokens), entropy(log_probs.detach())

        # 1. log-probabilities of all completions' tokens, (N, G·B'), and of each set's, (N, G)
        chunks = chunk_count(masked.numel(), self.student.spec.vocabulary)
        tokens = rollout.drawn.transpose(1, 2)[masked]
        log_probs, entropies = in_chunks(terms, chunks, self.student.features(state, masked), tokens)
        entropies = weighted(entropies, rollout.weights, masked)
        sets = log_probs.view(len(log_probs), config.sets, config.draws).sum(-1)
        # 2. their advantages
        advantage = rollout.advantage[:, None].expand(-1, state.length, -1)[masked].to(sets)
        loss = -(advantage * sets).sum() / config.sets
        return LossOutput(
            loss,
            {
                "entropy": (entropies.sum(), torch.tensor(float(len(entropies)))),
                "reward": (rollout.reward.sum(), torch.tensor(float(rollout.reward.numel()))),
            },
        )


def _finished(canvas: Canvas, tokens: Tensor) -> Canvas:
    """The rows with all of their tokens, at the end of time."""
    done = torch.zeros(len(canvas), dtype=torch.float64, device=canvas.device)
    return replace(canvas, tokens=tokens, open=torch.zeros_like(canvas.open), time=done)
