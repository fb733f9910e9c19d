"""A Markov source of order 1 or 2: masked posteriors, likelihood and entropy are closed forms.

Tokens follow p(x_l | x_{l−n} … x_{l−1}), n the order, so that a token depends most on its neighbours: a good order of
unmasking, which reveals them in different passes, needs few passes.

The posteriors p(x_l | unmasked tokens) are forward–backward over the states (x_{l−n+1} … x_l), n tokens each (Rabiner
1989). It runs on float64 probabilities, rescaled at each position, which is log space at the price of a matrix product:
nothing is ever subtracted, and `LOWEST` keeps products from underflowing, so all digits of a posterior are right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.source import Argument, Source
from teachers.randomness import Randomness, categorical, uniform

LOWEST = -150.0
"""Least log-probability of a transition: forward times backward weights of order 2 spread over four times as much, and
float64 ends at e⁻⁷⁰⁸."""
MOST_ENTRIES = 2**25  # of a table: 256 MiB
STATES_AT_ONCE = 2**24  # forward weights kept of a part of a batch: 128 MiB


class Markov(Source):
    """A stationary Markov source.

    A row may begin anywhere in the stream: the state at its first position has the law ``initial``, by default the
    stationary one. Under order 2 that state is (x₋₁, x₀), with x₋₁ before the row and never seen.

    Args:
        transitions: (T, T) or (T, T, T) log-probabilities of the last index given the others; the order is one less
            than its dimensions.
        initial: (T,) or (T, T) law of the first state, probabilities; None for the stationary one.

    Attributes:
        order: n, 1 or 2.

    Raises:
        UserError: tables that are not laws, of other shapes or too large, or transitions below `LOWEST`.
    """

    kind = "markov"
    transitions: Tensor
    initial: Tensor

    def __init__(self, transitions: Tensor, initial: Tensor | None = None):
        super().__init__()
        self.tokens, self.order = transitions.shape[-1], transitions.dim() - 1
        check_table(self.tokens, self.order)
        if not bool((transitions >= LOWEST).all()):
            raise UserError(
                f"transitions have log-probabilities down to {float(transitions.min()):.0f}, and the least is "
                f"{LOWEST:.0f}; choose a lower sharpness, or more smoothing"
            )
        transitions = transitions.double()
        _check_laws("transitions", transitions.exp(), (self.tokens,) * (self.order + 1), (-1,))
        initial = stationary_law(transitions.exp()) if initial is None else initial.double()
        _check_laws("initial", initial, (self.tokens,) * self.order, tuple(range(self.order)))
        self.register_buffer("transitions", transitions)
        self.register_buffer("initial", initial)

    def arguments(self) -> dict[str, Argument]:
        """See `Source.arguments`."""
        return {"transitions": self.transitions, "initial": self.initial}

    @property
    def size(self) -> int:
        """Transitions."""
        return self.transitions.numel()

    def description(self, length: int) -> str:
        """See `Source.description`."""
        return (
            f"markov of order {self.order}, {self.tokens} tokens, {self.entropy_rate():.4f} nats each in endless rows"
        )

    def posteriors(self, evidence: Tensor) -> Tensor:
        """See `Source.posteriors`."""
        rows = max(1, STATES_AT_ONCE // (evidence.shape[1] * self.tokens**self.order))
        return torch.cat([self._smooth(part) for part in evidence.split(rows)])

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

    def _laws(self) -> list[Tensor]:
        """log p(x₀), under order 2 log p(x₁ | x₀), and from then on `transitions`: at most order + 1 tables."""
        if self.order == 1:
            return [self.initial.log(), self.transitions]
        first_two = _step(self.initial[None], self.transitions.exp())[0]
        return [self.initial.sum(0).log(), (first_two / first_two.sum(1, keepdim=True)).log(), self.transitions]

    def draw(self, rows: int, length: int, generator: Randomness) -> Tensor:
        """See `Source.draw`."""
        uniforms, laws = uniform(generator, rows, length), self._laws()
        states: list[Tensor] = []
        for position in range(length):
            law = laws[min(position, self.order)]
            history = tuple(states[-(law.dim() - 1) :]) if law.dim() > 1 else ()
            states.append(categorical(law[history] if history else law.expand(rows, -1), uniforms[:, position]))
        return torch.stack(states, 1)

    def token_nats(self, rows: Tensor) -> Tensor:
        """−log p(x_l | x_<l) of every token, the first included: (B, L) float64 nats."""
        states, laws = rows.unbind(1), self._laws()
        nats = []
        for position in range(len(states)):
            law = laws[min(position, self.order)]
            nats.append(-law[tuple(states[position + 1 - law.dim() : position + 1])])
        return torch.stack(nats, 1)

    def log_prob(self, rows: Tensor) -> Tensor:
        """See `Source.log_prob`."""
        return -self.token_nats(rows).sum(1)

    def entropy(self, length: int) -> float:
        """Σ_l H(x_l | x_<l), by the states' marginals; see `Source.entropy`."""
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
        table: transition probabilities, as in `Markov`.
    """
    law = torch.full(table.shape[:-1], 1 / table[..., 0].numel(), dtype=torch.float64, device=table.device)
    for _ in range(iterations):
        after = (law + _step(law[None], table)[0]) / 2
        moved = float((after - law).abs().max())
        law = after / after.sum()
        if moved < 1e-15:  # a few units in the last place
            break
    return law


def check_table(tokens: int, order: int) -> None:
    """Refuse sizes that no source has.

    Raises:
        UserError: order not 1 or 2, fewer than two tokens, or a table too large to hold.
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


def random_source(tokens: int, order: int, sharpness: float, seed: int, length: int) -> SourceDenoiser:
    """A source of random transitions: logits are ``sharpness`` times standard normal draws.

    Args:
        tokens: T; the vocabulary is T + 1, the mask last.
        sharpness: 0 for independent uniform tokens; the larger, the more predictable.
        length: L, tokens of a row.

    Raises:
        UserError: see `Markov`; a negative sharpness, or one too large.
    """
    check_table(tokens, order)
    if not 0 <= sharpness < math.inf:
        raise UserError(f"sharpness is {sharpness}; it must be 0 (uniform tokens) or more, and finite")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((tokens,) * (order + 1), generator=generator, dtype=torch.float64)
    return SourceDenoiser(Markov((sharpness * logits).log_softmax(-1)), length)


def estimate_source(
    rows: Tensor,
    tokens: int,
    order: int,
    smoothing: float = 1.0,
    length: int | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> SourceDenoiser:
    """The source with the transitions of some rows of tokens.

    Each conditional is smoothed towards that of one token less context (MacKay & Peto 1995), the shortest towards
    uniform: p(k | h) = (count(h, k) + λ p(k | shorter h)) / (count(h) + λ).

    Args:
        rows: (N, L) int64 vocabulary entries, none of them the mask; transitions are counted within a row.
        tokens: T, one less than the vocabulary.
        smoothing: λ > 0, pseudo-counts of each context.
        length, mask_id, eos_id, pad_id: as in `SourceDenoiser`; ``length`` is that of the rows by default.

    Raises:
        UserError: see `Markov`; ``smoothing`` not positive.
    """
    length, mask_id = rows.shape[1] if length is None else length, tokens if mask_id is None else mask_id
    check_table(tokens, order)
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
    return SourceDenoiser(Markov(table.log()), length, mask_id, eos_id, pad_id)
