"""A mixture of templates: one of T texts, each token of which is now and then another one.

A row is of template k with probability 1/T. Its token at position l is then the template's, σ_l(k), with probability
1 − ε, or else a uniform one; σ_l is a permutation of the T tokens for each position, so no two templates agree
anywhere. All positions depend on one another alike, at any distance, and each alone is uniform:

    p(x) = 1/T Σ_k α^{n_k} γ^{L − n_k},   γ = ε / T,   α = 1 − ε + γ,

where n_k of the tokens are those of template k, and Σ_k n_k = L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from teachers.errors import UserError
from teachers.oracle.source import Argument, Source, check_share, normalised
from teachers.randomness import Randomness, categorical, generator_of, uniform


class Templates(Source):
    """A mixture of as many templates as there are tokens.

    Args:
        texts: (L, T) int64, σ_l(k): column k is template k, and a row holds each token once.
        noise: ε, the share of tokens that are uniform draws.

    Raises:
        UserError: texts that are no such table, or a share that is none.
    """

    kind = "templates"
    texts: Tensor
    owner: Tensor

    def __init__(self, texts: Tensor, noise: float):
        super().__init__()
        check_share("noise", noise)
        length, tokens = texts.shape if texts.dim() == 2 else (0, 0)
        if length < 2 or tokens < 2 or not bool((texts.sort(1).values == torch.arange(tokens)).all()):
            raise UserError(
                f"texts of templates have shape {tuple(texts.shape)} and must be at least two positions by two "
                "templates, with each token once in each row; if they come from a file write it again"
            )
        self.tokens, self.row_length, self.noise = tokens, length, noise
        self.register_buffer("texts", texts)
        self.register_buffer("owner", texts.argsort(1))  # (L, T) whose token it is

    def arguments(self) -> dict[str, Argument]:
        """See `Source.arguments`."""
        return {"texts": self.texts, "noise": self.noise}

    @property
    def odds(self) -> float:
        """log α − log γ, nats by which a token speaks for its template."""
        return math.log(1 - self.noise + self.noise / self.tokens) - math.log(self.noise / self.tokens)

    @property
    def channel(self) -> Tensor:
        """(T, T) the law of a token, read as whose it is, given the template: rows are templates."""
        same = torch.eye(self.tokens, dtype=torch.float64, device=self.texts.device)
        return (1 - self.noise) * same + self.noise / self.tokens

    def posteriors(self, evidence: Tensor) -> Tensor:
        """Of the templates given all known tokens, and of each token given these; see `Source.posteriors`."""
        # 1. evidence on whose each token is, (B, L, T)
        owner = evidence.gather(2, self.texts.expand_as(evidence))
        # 2. the templates: (B, T)
        template = (owner @ self.channel).log().sum(1).softmax(-1)
        # 3. whose each token is, and back to tokens
        law = owner * (template @ self.channel)[:, None]
        return normalised(law.gather(2, self.owner.expand_as(law)))

    def draw(self, rows: int, length: int, generator: Randomness) -> Tensor:
        """See `Source.draw`."""
        uniforms = uniform(generator, rows, length + 1)
        template = (uniforms[:, :1] * self.tokens).long()
        owner = categorical(self.channel.log()[template].expand(-1, length, -1), uniforms[:, 1:])
        return self.texts.expand(rows, -1, -1).gather(2, owner[..., None]).squeeze(2)

    def log_prob(self, rows: Tensor) -> Tensor:
        """See `Source.log_prob`."""
        owner = self.owner.expand(len(rows), -1, -1).gather(2, rows[..., None]).squeeze(2)
        counts = torch.zeros(len(rows), self.tokens, dtype=torch.float64, device=rows.device)
        return self.log_prob_of(counts.scatter_add_(1, owner, torch.ones_like(owner, dtype=torch.float64)))

    def log_prob_of(self, counts: Tensor) -> Tensor:
        """log p of rows with (…, T) tokens of each template: (…,)."""
        floor = math.log(self.noise / self.tokens)
        return (self.odds * counts).logsumexp(-1) + counts.sum(-1) * floor - math.log(self.tokens)

    def entropy(self, length: int) -> float:
        """−Σ p log p over how many tokens are of each template, in any order; see `Source.entropy`."""
        counts = torch.tensor(list(partitions(length, self.tokens)), dtype=torch.float64)
        log_p = self.log_prob_of(counts)
        return float(-((self.log_rows(counts) + log_p).exp() * log_p).sum())

    def log_rows(self, counts: Tensor) -> Tensor:
        """log of how many rows have (N, T) tokens of each template, whichever template has which number: (N,)."""
        length = int(counts[0].sum())
        orders = math.lgamma(length + 1) - torch.lgamma(counts + 1).sum(1)
        repeats = (counts[..., None] == torch.arange(length + 1)).sum(1).double()
        return orders + math.lgamma(self.tokens + 1) - torch.lgamma(repeats + 1).sum(1)


def partitions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """The ways to write a number as a sum of ``parts`` numbers ≥ 0, largest first."""

    def smaller(left: int, parts: int, most: int) -> Iterator[tuple[int, ...]]:
        if parts == 1:
            if left <= most:
                yield (left,)
            return
        for first in range(min(left, most), -1, -1):
            for rest in smaller(left - first, parts - 1, first):
                yield (first, *rest)

    return smaller(total, parts, total)


def random_templates(tokens: int, length: int, noise: float, seed: int) -> Templates:
    """Templates of random permutations.

    Raises:
        UserError: see `Templates`.
    """
    return Templates(torch.rand(length, max(tokens, 0), generator=generator_of(seed)).argsort(1), noise)
