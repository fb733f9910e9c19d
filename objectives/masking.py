"""What a denoiser learns from: which tokens are masked, at which times, and what each may look at meanwhile.

Beside plain masked diffusion there are what conversions of autoregressive models do: the causal mask opened bit by bit
(DiffuLLaMA, 2410.17891), masks and their complements (Fast-dLLM v2, 2509.26328), one time a block on a doubled canvas
(BD3-LM, 2503.09573), blocks that grow and shrink (LLaDA2, 2512.15745), and documents that do not see each other.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from teachers.canvas import Context, places
from teachers.denoiser import DenoiserSpec
from teachers.host import tell
from teachers.masks import block_numbers
from teachers.positions import sent
from teachers.randomness import RowStreams, uniform
from teachers.section import Section

LOW = 1e-3
"""The smallest time, and how far from 1 the largest is where complements are masked too: weights go as 1/t [own]."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, less their whole parts, fill [0, 1) evenly, however many there are."""

Stage = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[int, Field(gt=0, lt=2**31)]]


class MasksConfig(Section):
    """What is masked in training, and what each token looks at.

    Attributes:
        complementary: every row is learned from twice, with a mask and with its complement, so that each of its tokens
            is predicted once.
        documents: tokens of a packed row look at their own document alone, and positions start again in each.
        anneal: the share of the updates over which a causal mask is opened to full attention, each later token with
            the probability that has passed of it; None: attention is full at once.
        block_sizes: of block attention, (share of the updates, tokens a block from there on), the first from 0 and the
            last of ``model.block_size``; empty: that one throughout.
    """

    complementary: bool = False
    documents: bool = False
    anneal: float | None = Field(default=None, gt=0, le=1)
    block_sizes: list[Stage] = Field(default=[])

    @model_validator(mode="after")
    def _in_order(self) -> MasksConfig:
        shares = [share for share, _ in self.block_sizes]
        if shares and (shares[0] != 0 or shares != sorted(set(shares))):
            raise ValueError(
                f"block_sizes begin at {', '.join(f'{share:g}' for share in shares)} of the updates; the first must "
                "begin at 0, and each later one after the one before"
            )
        return self

    def open_share(self, done: float) -> float:
        """How much of what a causal mask hides is open after that share of the updates."""
        return 1.0 if self.anneal is None else min(1.0, done / self.anneal)

    def block_size(self, done: float, last: int | None) -> int | None:
        """Tokens a block after that share of the updates; ``last`` where nothing else is said."""
        sizes = [size for share, size in self.block_sizes if share <= done]
        return sizes[-1] if sizes else last


class Masking:
    """The masks of one update: a function of how much of the training is done, the text, and the rows' randomness.

    Args:
        spec: the denoiser's, whose attention is what training ends with.
    """

    def __init__(self, config: MasksConfig, spec: DenoiserSpec):
        self.config, self.spec = config, spec
        self.begin(1.0)

    def begin(self, done: float) -> None:
        """Told the share of the updates that are done; before the first time, all are."""
        self.open_share = self.config.open_share(done)
        self.block_size = self.config.block_size(done, self.spec.block_size)

    def context(self, x0: Tensor, randomness: RowStreams) -> Context | None:
        """What the tokens of rows (B, L) look at; None for what `DenoiserSpec.attention` says: everything."""
        documents = self._documents(x0)
        if self.block_size is not None:
            blocks = _blocks(x0, documents, self.block_size)
            # a row that is one block has none before it to read
            return Context(documents, None, blocks, x0 if self.block_size < x0.shape[1] else None)
        opened = None
        if self.open_share < 1:
            opened = uniform(randomness, *x0.shape, x0.shape[1], dtype=torch.float32) < self.open_share
        return Context(documents, opened) if documents is not None or opened is not None else None

    def times(self, uniforms: Tensor, context: Context | None) -> Tensor:
        """Uniforms (B,) → times (B,), antithetic in pairs of rows; (B, L) with one time a block, spread evenly."""
        high = 1 - LOW if self.config.complementary else 1.0
        if context is None or context.blocks is None:
            return stratified_times(uniforms, LOW, high)
        shares = stratified_times(uniforms, 0.0)[:, None] + GOLDEN * context.blocks
        return LOW + (high - LOW) * (shares % 1)

    def _documents(self, x0: Tensor) -> Tensor | None:
        """(B, L) number of each token's document, which ends with its end-of-text token."""
        if not self.config.documents:
            return None
        ends = (x0 == self.spec.eos_id).long()
        return ends.cumsum(1) - ends


def _blocks(x0: Tensor, documents: Tensor | None, size: int) -> Tensor:
    """(B, L) the number of each token's block; the host knows those of rows that are one document, and so alike."""
    if documents is not None:
        return block_numbers(places(documents), size)
    row = block_numbers(torch.arange(x0.shape[1])[None], size)
    blocks = sent(row, x0.device).expand(len(x0), -1)
    tell(blocks, row.expand(len(x0), -1))
    return blocks


def stratified_times(uniforms: Tensor, low: float = LOW, high: float = 1.0) -> Tensor:
    """Turn (B,) uniforms into times in [low, high], antithetic in pairs: rows 2i and 2i+1 share u and use u, 1 − u."""
    u = uniforms.clone()
    odd = u[1::2].shape[0]
    u[1::2] = 1 - u[0::2][:odd]
    return low + (high - low) * u
