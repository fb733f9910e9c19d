"""An exact teacher: a Markov source of order 1 or 2, whose masked posteriors, likelihood and entropy are closed forms.

Tokens follow p(x_l | x_{l−n} … x_{l−1}), n the order. What a trained teacher only approximates is exact here, so errors
of objectives and samplers are seen without the error of a network, and perplexity, KL and entropy without a judge.

The posteriors p(x_l | unmasked tokens) are forward–backward over the states (x_{l−n+1} … x_l), n tokens each (Rabiner
1989). It runs on float64 probabilities, rescaled at each position, which is log space at the price of a matrix product:
nothing is ever subtracted, and `LOWEST` keeps products from underflowing, so all digits of a posterior are right.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from teachers.canvas import Canvas
from teachers.denoiser import Compression, DenoiserSpec, ExactLaw
from teachers.errors import UserError
from teachers.families.family import Checkpoint
from teachers.families.markov import CAPABILITIES, MODEL_TYPE
from teachers.prefix import states_in_text
from teachers.randomness import Randomness, categorical, uniform
from teachers.source import reason

LOWEST = -150.0
"""Least log-probability of a transition: forward times backward weights of order 2 spread over four times as much, and
float64 ends at e⁻⁷⁰⁸."""
MOST_ENTRIES = 2**25  # of a table: 256 MiB
STATES_AT_ONCE = 2**24  # forward weights kept of a part of a batch: 128 MiB
SEQUENCES_AT_ONCE = 2**20


class MarkovConfig(PreTrainedConfig):
    """Makes the model type known to transformers, which reads ``config.json`` when it loads the tokenizer beside it."""

    model_type = MODEL_TYPE


AutoConfig.register(MODEL_TYPE, MarkovConfig, exist_ok=True)


class MarkovDenoiser(ExactLaw):
    """A stationary Markov source as a denoiser without parameters.

    Its T tokens are all entries of the vocabulary but the mask.

    A row may begin anywhere in the stream: the state at its first position has the law ``initial``, by default the
    stationary one. Under order 2 that state is (x₋₁, x₀), with x₋₁ before the row and never seen.

    Args:
        transitions: (T, T) or (T, T, T) log-probabilities of the last index given the others; the order is one less
            than its dimensions.
        length: L, tokens of a row; `spec.max_length`, though everything here works at any length.
        mask_id: its place among the T + 1 vocabulary entries; the last by default.
        eos_id, pad_id: of the tokenizer; tokens like others.
        initial: (T,) or (T, T) law of the first state, probabilities; None for the stationary one.

    Attributes:
        order: n, 1 or 2.
        tokens: T.

    Raises:
        UserError: tables that are not laws, of other shapes or too large, or transitions below `LOWEST`.
    """

    capabilities = CAPABILITIES
    transitions: Tensor
    initial: Tensor

    def __init__(
        self,
        transitions: Tensor,
        length: int,
        mask_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        initial: Tensor | None = None,
    ):
        super().__init__()
        self.tokens, self.order = transitions.shape[-1], transitions.dim() - 1
        check_source(self.tokens, self.order, length)
        if not bool((transitions >= LOWEST).all()):
            raise UserError(
                f"transitions have log-probabilities down to {float(transitions.min()):.0f}, and the least is "
                f"{LOWEST:.0f}; choose a lower sharpness, or more smoothing"
            )
        transitions = transitions.double()
        _check_laws("transitions", transitions.exp(), (self.tokens,) * (self.order + 1), (-1,))
        initial = stationary_law(transitions.exp()) if initial is None else initial.double()
        _check_laws("initial", initial, (self.tokens,) * self.order, tuple(range(self.order)))
        mask_id = self.tokens if mask_id is None else mask_id
        if not 0 <= mask_id <= self.tokens:
            raise UserError(f"mask_id is {mask_id}; it must be within 0 to {self.tokens}, the tokens and the mask")
        self.spec = DenoiserSpec(mask_id, self.tokens + 1, length, eos_id, pad_id)
        self.register_buffer("transitions", transitions)
        self.register_buffer("initial", initial)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MarkovDenoiser:
        """Move the tables, but never cast them: in bfloat16 it would be another source."""
        tables = {name: table for name, table in self.named_buffers()}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.transitions.device

    @property
    def size(self) -> int:
        """Transitions."""
        return self.transitions.numel()

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """`posterior` in float32, whatever the time: (B, L, V), or (N, V) under ``select``; see `Denoiser.features`.

        Behind a prefix it is that given the clean text before a block.
        """
        self.tally.add(len(canvas))
        if canvas.prefix is None:
            log_probs = self.posterior(canvas.tokens, canvas.real)
        else:
            log_probs = states_in_text(lambda whole: self.posterior(whole.tokens), canvas, self.spec)
        return (log_probs if select is None else log_probs[select]).float()

    @torch.no_grad()
    def posterior(self, z: Tensor, real: Tensor | None = None) -> Tensor:
        """log p(x_l | the unmasked tokens of z) at every position, unmasked ones too, where it is 0 or −∞.

        Args:
            z: (B, L) tokens, any of them masked.
            real: (B, L), False where a token is padding, of which nothing is known: a row begins behind it.

        Returns:
            (B, L, V) float64, the mask's column −∞.
        """
        if real is not None:
            place = (~real).long().argsort(dim=1, stable=True)  # padding goes to the end, where it tells nothing
            moved = self.posterior(z.masked_fill(~real, self.spec.mask_id).gather(1, place))
            return torch.empty_like(moved).scatter_(1, place[..., None].expand_as(moved), moved)
        known = z != self.spec.mask_id
        evidence = torch.ones(*z.shape, self.tokens, dtype=torch.float64, device=z.device)
        evidence[known] = torch.nn.functional.one_hot(self._states(z[known]), self.tokens).double()
        rows = max(1, STATES_AT_ONCE // (z.shape[1] * self.tokens**self.order))
        probabilities = torch.cat([self._smooth(part) for part in evidence.split(rows)])
        out = torch.full((*z.shape, self.spec.vocabulary), -torch.inf, dtype=torch.float64, device=z.device)
        out[..., self._ids()] = probabilities.log()
        return out

    def _smooth(self, evidence: Tensor) -> Tensor:
        """Forward–backward: (B, L, T) 1 where a token is possible → (B, L, T) posterior probabilities."""
        table, length = self.transitions.exp(), evidence.shape[1]
        see = evidence.unbind(1) if self.order == 1 else evidence.unsqueeze(2).unbind(1)  # (B, T), or (B, 1, T)
        forward = [_rescaled(self.initial * see[0])]
        for here in see[1:]:
            forward.append(_rescaled(_step(forward[-1], table) * here))
        backward, posteriors = torch.ones_like(forward[0]), []
        for position in range(length - 1, -1, -1):
            both = forward[position] * backward
            posteriors.append(_rescaled(both if self.order == 1 else both.sum(1)))
            if position:
                backward = _rescaled(_step_back(backward * see[position], table))
        return torch.stack(posteriors[::-1], 1)

    def _states(self, tokens: Tensor) -> Tensor:
        """Vocabulary entries → 0 … T−1."""
        return tokens - (tokens > self.spec.mask_id).long()

    def _ids(self) -> Tensor:
        """(T,) the vocabulary entries of the tokens."""
        entries = torch.arange(self.spec.vocabulary, device=self.device)
        return entries[entries != self.spec.mask_id]

    def _laws(self) -> list[Tensor]:
        """log p(x₀), under order 2 log p(x₁ | x₀), and from then on `transitions`: at most order + 1 tables."""
        if self.order == 1:
            return [self.initial.log(), self.transitions]
        first_two = _step(self.initial[None], self.transitions.exp())[0]
        return [self.initial.sum(0).log(), (first_two / first_two.sum(1, keepdim=True)).log(), self.transitions]

    @torch.no_grad()
    def sample(self, rows: int, generator: Randomness, length: int | None = None) -> Tensor:
        """Exact draws: (rows, ``length``) int64; by default as long as `spec` says."""
        length = self.spec.max_length if length is None else length
        uniforms, laws = uniform(generator, rows, length), self._laws()
        states: list[Tensor] = []
        for position in range(length):
            law = laws[min(position, self.order)]
            history = tuple(states[-(law.dim() - 1) :]) if law.dim() > 1 else ()
            states.append(categorical(law[history] if history else law.expand(rows, -1), uniforms[:, position]))
        return self._ids()[torch.stack(states, 1)]

    @torch.no_grad()
    def token_nats(self, tokens: Tensor) -> Tensor:
        """−log p(x_l | x_<l) of every token, the first included: (B, L) float64 nats."""
        assert not bool((tokens == self.spec.mask_id).any()), "a mask has no probability"
        states, laws = self._states(tokens).unbind(1), self._laws()
        nats = []
        for position in range(len(states)):
            law = laws[min(position, self.order)]
            nats.append(-law[tuple(states[position + 1 - law.dim() : position + 1])])
        return torch.stack(nats, 1)

    def log_likelihood(self, tokens: Tensor) -> Tensor:
        """log p of whole rows (B, L): (B,) float64 nats."""
        return -self.token_nats(tokens).sum(1)

    def entropy(self, length: int | None = None) -> float:
        """Exact entropy of a row of ``length`` tokens, in nats: Σ_l H(x_l | x_<l), by the states' marginals."""
        length = self.spec.max_length if length is None else length
        laws = self._laws()
        total, state = float(-(laws[0].exp() * laws[0]).sum()), laws[0].exp()
        conditional = [-(law.exp() * law).sum(-1) for law in laws[1:]]  # (T,), or (T,) and (T, T)
        for position in range(1, length):
            law = laws[min(position, self.order)].exp()
            total += float((state * conditional[min(position, self.order) - 1]).sum())
            # order 2: from p(x₀) to p(x₀, x₁), and then from pair to pair
            state = state[:, None] * law if state.dim() < self.order else _step(state[None], law)[0]
        return total

    def entropy_rate(self) -> float:
        """Nats a token of an endless row: Σ_s π(s) H(· | s), π the stationary law of the states."""
        conditional = -(self.transitions.exp() * self.transitions).sum(-1)
        return float((stationary_law(self.transitions.exp()) * conditional).sum())

    def excess_nats(self, tokens: Tensor) -> tuple[float, float]:
        """What rows (B ≥ 2, L) cost above the source's entropy, in nats a token: the mean and its standard error.

        E_q[−log p] − H(p), unbiased for any law q of the rows. It is 0 for the source itself, but not only for it: it
        falls below 0 where q is sharper than p. Always look at q's own entropy as well.
        """
        count, length = tokens.shape
        nats = -self.log_likelihood(tokens) / length
        return float(nats.mean()) - self.entropy(length) / length, float(nats.std()) / math.sqrt(count)

    def all_rows(self, length: int) -> Tensor:
        """Every row of ``length`` tokens, in the order of the laws that `kl` takes: (T^L, L).

        Raises:
            UserError: too many to enumerate.
        """
        if self.tokens**length > SEQUENCES_AT_ONCE:
            raise UserError(
                f"{self.tokens} tokens have {self.tokens}^{length} rows of {length}, more than can be enumerated "
                f"({SEQUENCES_AT_ONCE}); use fewer tokens or shorter rows, or estimate with excess_nats"
            )
        return self._ids()[torch.tensor(list(itertools.product(range(self.tokens), repeat=length)), device=self.device)]

    def kl(self, law: Tensor, length: int) -> float:
        """Exact KL(law ‖ source) in nats a row.

        Args:
            law: (T^L,) probabilities of `all_rows`, such as `students.samplers.law.ancestral_law` gives.
        """
        law = law.double()
        return float((torch.xlogy(law, law) - law * self.log_likelihood(self.all_rows(length))).sum())

    def kl_bound(self, tokens: Tensor, log_q: Tensor) -> tuple[float, float]:
        """Unbiased estimate of a bound on KL(q ‖ source), in nats a token: the mean and its standard error.

        Say pass n commits positions S_n of a canvas z_n, chosen without sight of the tokens drawn for them. Rows x and
        orders c = (S_1, S_2, …) then have the joint law q(x, c) = w(c | x) Π_n q(x_{S_n} | z_n), and w(c | x) =
        Π_n q(S_n | z_n) is a law of orders, whatever x. So the mean of Σ_n log q(x_{S_n} | z_n) − log p(x) is
        KL(q(x, c) ‖ p(x) w(c | x)), which is at least KL(q ‖ p), that of x alone. For ancestral sampling, whose orders
        depend on nothing, it is E_c KL(q(· | c) ‖ p).

        Sharpness can not lower it below 0, which it is for the source itself, sampled a token a pass.

        Args:
            tokens: (B ≥ 2, L). log_q: (B,) Σ_n log q(x_{S_n} | z_n), nats; as `Filled.log_prob` in students.
        """
        gaps = (log_q.double() - self.log_likelihood(tokens)) / tokens.shape[1]
        return float(gaps.mean()), float(gaps.std()) / math.sqrt(len(gaps))

    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """See `Denoiser.save`; `load_source` reads it."""
        if compression is not None:
            self.require("compression", f"compression {compression!r}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in self.named_buffers()}, folder / "model.safetensors")
        config = {"model_type": MODEL_TYPE, "order": self.order, "fewstep": self.spec.as_dict()}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        # safetensors are created unreadable for others
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _check_laws(name: str, law: Tensor, shape: tuple[int, ...], over: tuple[int, ...]) -> None:
    if law.shape != shape or not bool((law > 0).all()) or not bool(((law.sum(over) - 1).abs() < 1e-9).all()):
        raise UserError(
            f"{name} of a Markov source have shape {tuple(law.shape)} and must be positive, sum to 1 and have shape "
            f"{shape}; normalise them, or if they come from a file write it again"
        )


def _rescaled(weights: Tensor) -> Tensor:
    """(B, …) weights with a sum of 1 in each row."""
    return weights / weights.flatten(1).sum(1).view(-1, *[1] * (weights.dim() - 1))


def _step(states: Tensor, table: Tensor) -> Tensor:
    """Move laws of states on by a token: (B, T) or (B, T, T) → the same."""
    if table.dim() == 2:
        return states @ table
    # Σ_i a(i, j) p(k | i, j), a product of matrices for every j
    return torch.bmm(states.permute(2, 0, 1), table.transpose(0, 1)).transpose(0, 1)


def _step_back(weights: Tensor, table: Tensor) -> Tensor:
    """Σ over the next token of its probability and its weight: (B, T) or (B, T, T) → the same."""
    if table.dim() == 2:
        return weights @ table.T
    # Σ_k p(k | i, j) b(j, k), a product of matrices for every j
    return torch.bmm(weights.transpose(0, 1), table.permute(1, 2, 0)).permute(1, 2, 0)


def stationary_law(table: Tensor, iterations: int = 10_000) -> Tensor:
    """The law of states that a step leaves as it is: (T,) or (T, T), by power iteration.

    A table without zeros has exactly one. Half of each iteration stays, so that near-periodic sources converge, too.

    Args:
        table: transition probabilities, as in `MarkovDenoiser`.
    """
    law = torch.full(table.shape[:-1], 1 / table[..., 0].numel(), dtype=torch.float64, device=table.device)
    for _ in range(iterations):
        after = (law + _step(law[None], table)[0]) / 2
        moved = float((after - law).abs().max())
        law = after / after.sum()
        if moved < 1e-15:  # a few units in the last place
            break
    return law


def check_source(tokens: int, order: int, length: int) -> None:
    """Refuse sizes that no source has.

    Raises:
        UserError: order not 1 or 2, fewer than two tokens, no length, or a table too large to hold.
    """
    if order not in (1, 2):
        raise UserError(f"order is {order}; a Markov source has order 1 or 2")
    if tokens < 2:
        raise UserError(f"tokens is {tokens}; a source needs at least 2")
    if tokens ** (order + 1) > MOST_ENTRIES:
        raise UserError(
            f"tokens {tokens} at order {order} make a table of {tokens}^{order + 1} entries, more than {MOST_ENTRIES}; "
            "use order 1, or fewer tokens"
        )
    if length < 2:
        raise UserError(f"length is {length}; rows have at least 2 tokens")


def random_source(tokens: int, order: int, sharpness: float, seed: int, length: int) -> MarkovDenoiser:
    """A source of random transitions: logits are ``sharpness`` times standard normal draws.

    Args:
        tokens: T; the vocabulary is T + 1, the mask last.
        sharpness: 0 for independent uniform tokens; the larger, the more predictable.
        length: L, tokens of a row.

    Raises:
        UserError: see `MarkovDenoiser`; a negative sharpness, or one too large.
    """
    check_source(tokens, order, length)
    if not 0 <= sharpness < math.inf:
        raise UserError(f"sharpness is {sharpness}; it must be 0 (uniform tokens) or more, and finite")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((tokens,) * (order + 1), generator=generator, dtype=torch.float64)
    return MarkovDenoiser((sharpness * logits).log_softmax(-1), length)


def estimate_source(
    rows: Tensor,
    tokens: int,
    order: int,
    smoothing: float = 1.0,
    length: int | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> MarkovDenoiser:
    """The source with the transitions of some rows of tokens.

    Each conditional is smoothed towards that of one token less context (MacKay & Peto 1995), the shortest towards
    uniform: p(k | h) = (count(h, k) + λ p(k | shorter h)) / (count(h) + λ).

    Args:
        rows: (N, L) int64 vocabulary entries, none of them the mask; transitions are counted within a row.
        tokens: T, one less than the vocabulary.
        smoothing: λ > 0, pseudo-counts of each context.
        length, mask_id, eos_id, pad_id: as in `MarkovDenoiser`; ``length`` is that of the rows by default.

    Raises:
        UserError: see `MarkovDenoiser`; ``smoothing`` not positive.
    """
    length, mask_id = rows.shape[1] if length is None else length, tokens if mask_id is None else mask_id
    check_source(tokens, order, length)
    if not 0 < smoothing < math.inf:
        raise UserError(f"smoothing is {smoothing}; it must be positive and finite, or unseen tokens were impossible")
    states = rows - (rows > mask_id).long()
    assert bool((rows != mask_id).all()), "rows to estimate from hold no masks"
    assert bool(((states >= 0) & (states < tokens)).all()), "rows hold entries of the vocabulary"
    table = torch.full((), 1 / tokens, dtype=torch.float64)
    for context in range(order + 1):
        width = rows.shape[1] - context
        digits = (states[:, i : i + width] * tokens ** (context - i) for i in range(context + 1))
        place = sum(digits, torch.zeros_like(states[:, :width]))
        counts = torch.bincount(place.flatten(), minlength=tokens ** (context + 1)).double()
        counts = counts.view((tokens,) * (context + 1))
        table = (counts + smoothing * table) / (counts.sum(-1, keepdim=True) + smoothing)
    return MarkovDenoiser(table.log(), length, mask_id, eos_id, pad_id)


def load_source(checkpoint: Checkpoint) -> MarkovDenoiser:
    """Load what `MarkovDenoiser.save` wrote.

    Raises:
        UserError: it cannot be read, or its tables are not those of a source.
    """
    spec: dict[str, Any] = checkpoint.config.get("fewstep") or {}
    try:
        tables = load_file(checkpoint.folder / "model.safetensors")
        transitions, initial = tables["transitions"], tables["initial"]
        values = {key: spec[key] for key in ("mask_id", "eos_id", "pad_id")}
        length = int(spec["max_length"])
    except Exception as error:  # safetensors, the disk and a config of another kind raise half a dozen types
        raise UserError(
            f"cannot load Markov source {checkpoint.name!r} ({reason(error)}); give a folder that fewstep markov wrote"
        ) from error
    return MarkovDenoiser(transitions, length, **values, initial=initial)
