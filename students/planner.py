"""A learned decision of which masked positions to commit: a small head on a denoiser, one Bernoulli logit a position.

The analogue of dUltra's planner (2512.21446). The head sees what the denoiser computes from the canvas, and where in it
a position is, never a token that was drawn from it: so with an exact denoiser that commits one position at a time the
samples keep the exact law, whatever the order. A pass commits a set S of the masked positions M, from left to right,
conditioned on being none too few to go on:

    P(S) = Π_{i∈S} p_i Π_{i∈M∖S} (1 − p_i) / (1 − P(nothing)),   S ≠ ∅,   p_i = σ(logit_i + g_i(S))

where g_i(S) is a learned number for the distance from i to the nearest member of S on its left, 0 beyond `REACH` and
where there is none [own; independent Bernoullis, g = 0, as published]. Neighbours that say much of each other lose most
when they are drawn at once, and Bernoullis that are independent can not take turns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from teachers.canvas import Canvas
from teachers.delegating import DelegatingDenoiser
from teachers.denoiser import Compression, Denoiser, Layout
from teachers.errors import UserError
from teachers.families import Checkpoint
from teachers.randomness import categorical
from teachers.source import reason

PLANNER_FILE = "planner.safetensors"
PERIODS = 4  # of the position: 2, 4, 8 and 16 tokens [own]
SURROUNDINGS = 3 + 2 * PERIODS - 1
REACH = 8  # tokens, of what a commitment does to others of the same pass [own]
SHARPNESS = 60.0  # logits a nat: a threshold of 0.9 commits 9% at 0.865 and 91% at 0.934 [own]
LARGEST_BASE = 5.0  # ± of the base's logit, so that the head can still move it: rates of 0.7% to 99.3% [own]


def base_logits(share: Tensor, steps: int | Tensor) -> Tensor:
    """Logit of 1 / (steps · share), the ancestral rate of log-linear noise: as many tokens a pass, on average.

    It depends on the canvas alone, not on the number of the pass.

    Args:
        share: (N,) part of the row that is masked, > 0. steps: (N,), or the same for all.
    """
    return torch.logit((1 / (steps * share)).clamp(max=1.0)).clamp(-LARGEST_BASE, LARGEST_BASE)


def summary(log_probs: Tensor) -> Tensor:
    """What the head reads of a distribution: entropy and the largest log-probability, in nats: (N, V) → (N, 2)."""
    possible = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return torch.stack([-(log_probs.exp() * possible).sum(-1), log_probs.amax(-1)], -1)


def surroundings(masked: Tensor, real: Tensor | None = None) -> Tensor:
    """What the head reads of where a masked position is: (B, L) → (N, `SURROUNDINGS`) in row-major order of ``masked``.

    The part of the row that is masked; the inverse distances to the known tokens on the left and on the right, 0
    where there is none; and the position as sines and cosines of periods 2, 4, 8, …, by which positions that look alike
    can be told apart [own].

    Args:
        real: (B, L), False where a token is padding, which is not part of the row; None where none is.
    """
    real = torch.ones_like(masked) if real is None else real
    place = real.long().cumsum(1) - 1
    # 1. how much is masked, and how far off the known tokens are
    share = masked.double().sum(1, keepdim=True) / real.sum(1, keepdim=True)
    known = real & ~masked
    left = place - torch.where(known, place, -torch.inf).cummax(1).values
    right = torch.where(known, place, torch.inf).flip(1).cummin(1).values.flip(1) - place
    # 2. the position; sin(πi) is 0
    angles = torch.pi * place[..., None] / 2.0 ** torch.arange(PERIODS, device=masked.device)
    waves = torch.cat([angles.cos(), angles[..., 1:].sin()], -1)
    return torch.cat([torch.stack([share.expand(masked.shape), 1 / left, 1 / right], -1), waves], -1)[masked]


def draw_commits(logits: Tensor, masked: Tensor, uniforms: Tensor, repulsion: Tensor | None = None) -> Tensor:
    """Draw S exactly: its first member from P(first = i) ∝ p_i Π_{j<i} (1 − p_j), those after it from left to right.

    Args:
        logits, masked: (B, L); logits mean something where masked.
        uniforms: (B, L + 1), float64.
        repulsion: (2, R) g for distances 1 … R: where nothing in between is known, and elsewhere; None for g = 0.

    Returns:
        (B, L) bool; at least one True in a row that has masks.
    """
    yes = functional.logsigmoid(logits).masked_fill(~masked, -torch.inf)
    no = functional.logsigmoid(-logits).masked_fill(~masked, 0.0)
    first = categorical(yes + no.cumsum(1) - no, uniforms[:, 0])[:, None]
    place = torch.arange(logits.shape[1], device=logits.device)
    if repulsion is None:
        return masked & ((place == first) | ((place > first) & (uniforms[:, 1:] < logits.sigmoid())))
    table = _table(repulsion)
    wants = uniforms[:, 1:, None] < (logits[..., None] + table).sigmoid()
    commit = (masked & (place >= first))[..., None] & ((place == first)[..., None] | wants)
    return commit.gather(-1, _found(commit, masked, repulsion.shape[1])[..., None]).squeeze(-1)


def _table(repulsion: Tensor) -> Tensor:
    """(2R + 1,) g for each of the things that a position can find on its left, the last of which is nothing near."""
    return torch.cat([repulsion.flatten(), repulsion.new_zeros(1)])


def _found(commit: Tensor, masked: Tensor, reach: int) -> Tensor:
    """What each position finds on its left if each decides as ``commit`` says, as an index of `_table`: (B, L).

    What the next position finds is a function of what this one does. Functions are composed, so that all prefixes are
    found in log₂ L rounds rather than one position after the other.

    Args:
        commit: (B, L, 2R + 1), what a position would do for each of the things that it can find.
    """
    index = torch.arange(2 * reach + 1, device=commit.device)
    further = torch.where(index % reach == reach - 1, 2 * reach, index + 1).clamp(max=2 * reach)
    past_known = torch.where(index < reach, (further + reach).clamp(max=2 * reach), further)
    after = torch.where(masked[..., None], further, past_known).masked_fill(commit, 0)
    hop = 1
    while hop < after.shape[1]:
        after = torch.cat([after[:, :hop], after[:, hop:].gather(-1, after[:, :-hop])], 1)
        hop *= 2
    nothing = torch.full_like(after[:, :1, 0], 2 * reach)
    return torch.cat([nothing, after[:, :-1, -1]], 1)


def commit_log_prob(logits: Tensor, masked: Tensor, commit: Tensor, repulsion: Tensor | None = None) -> Tensor:
    """log P(S): (B,); 0 for a row without masks. Arguments as `draw_commits`; ``commit`` (B, L) is S."""
    nothing = functional.logsigmoid(-logits).masked_fill(~masked, 0.0).sum(1).masked_fill(~masked.any(1), -torch.inf)
    if repulsion is not None:
        table = _table(repulsion)
        logits = logits + table[_found(commit[..., None].expand(*commit.shape, len(table)), masked, repulsion.shape[1])]
    each = functional.logsigmoid(torch.where(commit, logits, -logits)).masked_fill(~masked, 0.0)
    return each.sum(1) - torch.log(-torch.expm1(nothing))


class PlannerHead(nn.Module):
    """`base_logits` plus what is learned; at the start nothing is.

    Args:
        inputs: H, width of the denoiser's features.
        base_steps: passes in which the untrained head fills a canvas, on average.
        width: of the hidden layer [own].
        confidence: a probability that the start is a soft threshold at: `SHARPNESS` times the excess of the largest
            log-probability over its logarithm is added to the logits. None: the start is the rate alone.
    """

    def __init__(self, inputs: int, base_steps: int, width: int = 32, confidence: float | None = None):
        super().__init__()
        self.base_steps, self.width = base_steps, width
        cheap = 2 + SURROUNDINGS
        self.hidden = nn.Linear(inputs + cheap, width)
        self.out = nn.Linear(width + cheap, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if confidence is not None:
            with torch.no_grad():
                self.out.weight[0, width + 1] = SHARPNESS
                self.out.bias.fill_(-SHARPNESS * math.log(confidence))
        self.repulsion = nn.Parameter(torch.zeros(2, REACH))

    def forward(self, features: Tensor, summaries: Tensor, where: Tensor) -> Tensor:
        """(N,) logits; see `PlannedDenoiser.commit_logits`."""
        # a denoiser that is not split has its log-probabilities for features, −∞ at the mask
        features = features.masked_fill(features == -torch.inf, 0.0)
        features = functional.layer_norm(features.to(summaries), features.shape[-1:])
        dtype, share, rest = self.out.weight.dtype, where[:, 0], where[:, 1:].to(summaries)
        cheap = torch.cat([summaries, share.log()[:, None].to(summaries), rest], -1).to(dtype)
        hidden = functional.silu(self.hidden(torch.cat([features.to(dtype), cheap], -1)))
        return base_logits(share, self.base_steps) + self.out(torch.cat([hidden, cheap], -1)).squeeze(-1)


class PlannedDenoiser(DelegatingDenoiser):
    """A denoiser with a planner: its tokens are the denoiser's own, and it says which of them to commit.

    Args:
        inner: registered, so that both train, or one: ``inner.requires_grad_(False)``.
    """

    def __init__(self, inner: Denoiser, planner: PlannerHead):
        super().__init__(inner)
        self.planner = planner
        self.eval()

    def commit_logits(self, features: Tensor, summaries: Tensor, where: Tensor) -> Tensor:
        """The planner's; see `Denoiser.commit_logits`."""
        return self.planner(features, summaries, where)

    @property
    def repulsion(self) -> Tensor:
        """The planner's; see `Denoiser.repulsion`."""
        return self.planner.repulsion

    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """The inner denoiser's folder, which loads without us, and `PLANNER_FILE`, float32, beside its weights."""
        self.inner.save(folder, compression, released)
        tensors = {name: p.detach().cpu().float().contiguous() for name, p in self.planner.named_parameters()}
        shape = {"base_steps": self.planner.base_steps, "width": self.planner.width}
        save_file(tensors, Path(folder) / PLANNER_FILE, metadata={"planner": json.dumps(shape)})

    @contextmanager
    def laid_out(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase | None
    ) -> Iterator[tuple[Denoiser, PreTrainedTokenizerBase | None]]:
        """The inner denoiser's, with the planner; see `Denoiser.laid_out`."""
        with self.inner.laid_out(layout, tokenizer) as (inner, words):
            yield PlannedDenoiser(inner, self.planner), words


def add_planner(
    denoiser: Denoiser, base_steps: int, width: int = 32, confidence: float | None = None
) -> PlannedDenoiser:
    """Put an untrained planner on a denoiser, see `PlannerHead`; drawn with torch's global generator."""
    with torch.no_grad():
        features = denoiser.features(Canvas.blank(1, 1, denoiser.spec.mask_id, denoiser.device))
    return PlannedDenoiser(denoiser, PlannerHead(features.shape[-1], base_steps, width, confidence).to(features.device))


def load_planner(denoiser: Denoiser, folder: str | Path) -> Denoiser:
    """The denoiser that was loaded from ``folder``, with the planner that lies there, or as it is if none does.

    Raises:
        UserError: the planner can not be read, or is of another denoiser.
    """
    path = Path(folder) / PLANNER_FILE
    if not path.is_file():
        return denoiser
    try:
        with safe_open(path, "pt") as file:
            shape = json.loads(file.metadata()["planner"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        planned = add_planner(denoiser, int(shape["base_steps"]), int(shape["width"]))
        planned.planner.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"cannot put planner {path} on its denoiser ({reason(error)}); give the folder it was saved in, or remove "
            "that file to go on without it"
        ) from error
    return planned


def load_planned(
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase | None = None,
    precision: torch.dtype = torch.float32,
    **options: Any,
) -> Denoiser:
    """`Checkpoint.load`, with the planner that lies in the model's folder, if one does, in the same precision."""
    denoiser = load_planner(checkpoint.load(tokenizer, precision, **options), checkpoint.folder)
    if isinstance(denoiser, PlannedDenoiser):
        denoiser.planner.to(precision)
    return denoiser
