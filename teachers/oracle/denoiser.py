"""A source as a denoiser without parameters, and the figures of rows that somebody else wrote."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from teachers.canvas import Canvas
from teachers.denoiser import Compression, DenoiserSpec, ExactLaw
from teachers.errors import UserError
from teachers.families.oracle import CAPABILITIES
from teachers.oracle.files import save_source
from teachers.oracle.source import Source, one_hot
from teachers.prefix import states_in_text
from teachers.randomness import Randomness

SEQUENCES_AT_ONCE = 2**20


class SourceDenoiser(ExactLaw):
    """A source, whose T tokens are all entries of the vocabulary but the mask.

    Args:
        length: L, tokens of a row, `spec.max_length`. A Markov source works at any length.
        mask_id: its place among the T + 1 vocabulary entries; the last by default.
        eos_id, pad_id: of the tokenizer; tokens like others.

    Raises:
        UserError: a length that the source does not write, or a mask that is none of the entries.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        source: Source,
        length: int,
        mask_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
    ):
        super().__init__()
        if length < 2:
            raise UserError(f"length is {length}; rows have at least 2 tokens")
        source.check_length(length)
        self.source, self.tokens = source, source.tokens
        mask_id = self.tokens if mask_id is None else mask_id
        if not 0 <= mask_id <= self.tokens:
            raise UserError(f"mask_id is {mask_id}; it must be within 0 to {self.tokens}, the tokens and the mask")
        self.spec = DenoiserSpec(mask_id, self.tokens + 1, length, eos_id, pad_id)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return next(self.buffers()).device

    @property
    def size(self) -> int:
        """Numbers that make up the source."""
        return self.source.size

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
        self.source.check_length(z.shape[1])
        known = z != self.spec.mask_id
        evidence = torch.ones(*z.shape, self.tokens, dtype=torch.float64, device=z.device)
        evidence[known] = one_hot(self._states(z[known]), self.tokens)
        out = torch.full((*z.shape, self.spec.vocabulary), -torch.inf, dtype=torch.float64, device=z.device)
        out[..., self._ids()] = self.source.posteriors(evidence).log()
        return out

    def _states(self, tokens: Tensor) -> Tensor:
        """Vocabulary entries → 0 … T−1."""
        assert not bool((tokens == self.spec.mask_id).any()), "a mask has no probability"
        return tokens - (tokens > self.spec.mask_id).long()

    def _ids(self) -> Tensor:
        """(T,) the vocabulary entries of the tokens."""
        return self.spec.tokens(self.device)

    @torch.no_grad()
    def sample(self, rows: int, generator: Randomness, length: int | None = None) -> Tensor:
        """Exact draws: (rows, ``length``) int64; by default as long as `spec` says."""
        length = self._length(length)
        return self._ids()[self.source.draw(rows, length, generator)]

    @torch.no_grad()
    def log_likelihood(self, tokens: Tensor) -> Tensor:
        """log p of whole rows (B, L): (B,) float64 nats."""
        self.source.check_length(tokens.shape[1])
        return self.source.log_prob(self._states(tokens))

    def entropy(self, length: int | None = None) -> float:
        """Exact entropy of a row of ``length`` tokens, in nats."""
        return self.source.entropy(self._length(length))

    def _length(self, length: int | None) -> int:
        length = self.spec.max_length if length is None else length
        self.source.check_length(length)
        return length

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
        """See `Denoiser.save`; `teachers.oracle.files.load_source` reads it."""
        if compression is not None:
            self.require("compression", f"compression {compression!r}")
        save_source(self.source, self.spec, Path(folder))
