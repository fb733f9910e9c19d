"""A denoiser while it fills one canvas: every pass goes through here, and is counted."""

from __future__ import annotations

import torch
from torch import Tensor

from students.cache import Approximation, RowCache
from teachers.canvas import Canvas
from teachers.chunks import chunk_count, in_chunks
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.ops.head import LinearHead, fusing_pays


class Session:
    """Passes over the rows of a canvas, counted row by row; with a cache, where that is exact or asked for.

    Args:
        canvas: all rows, as they are at first.
        passes: how many a row may take; nothing is kept for a single one.
        approximation: of the cache; None for an exact one, if attention is in blocks and the network reads no time.

    Raises:
        UserError: an approximation that this network can not make.

    Attributes:
        nfe: (B,) int64, forward passes of the denoiser that each row took.
        critic_nfe: (B,) int64, passes of any other network (discriminator, verifier).
        query_tokens: tokens sent through the denoiser, all rows together.
    """

    def __init__(self, denoiser: Denoiser, canvas: Canvas, passes: int = 1, approximation: Approximation | None = None):
        self.denoiser, self.spec = denoiser, denoiser.spec
        self.nfe = torch.zeros(len(canvas), dtype=torch.int64, device=canvas.device)
        self.critic_nfe = torch.zeros_like(self.nfe)
        self.query_tokens = 0
        self._positions, self._begun = canvas.tokens.numel(), False
        if approximation is not None:
            check_cache(denoiser, approximation)
        # blocks behind a prefix are read in one pass for all of a text
        able = keeps_exactly(denoiser) or approximation is not None
        kept = able and passes > 1 and canvas.prefix is None
        self._cache = RowCache(denoiser, canvas, approximation) if kept else None

    def features(self, canvas: Canvas, rows: Tensor, select: Tensor, here: Tensor | None = None) -> Tensor:
        """What the denoiser's head reads at the selected positions, (N, H) in row-major order; one pass for each row.

        Args:
            canvas: the R rows as they are now. rows: (R,) their indices in the whole canvas. select: (R, L) bool.
            here: (R, L) the block of the sampler that each row is at; None where it has none.
        """
        self.nfe[rows] += 1
        if self._cache is not None:
            features, sent = self._cache.features(canvas, rows, select, here)
            self.query_tokens += sent
            return features
        self.query_tokens += canvas.tokens.numel()
        if not self._begun:
            self._begun = True
            return self.denoiser.features_at(canvas, select)
        return self.denoiser.features(canvas, select)  # rows that were alike are no longer

    def idle(self, canvas: Canvas) -> Tensor:
        """A pass that asks no position and is not counted, for the sake of the other processes: (0, H)."""
        row = canvas.rows(slice(0, 1))
        features = self.denoiser.features(row, torch.zeros_like(row.open))
        in_chunks(lambda part: (self.denoiser.head(part),), self.chunks(0), features)
        return features

    def linear_head(self, positions: int) -> LinearHead | None:
        """The head for what is fused with it at so many positions; None where that is impossible, or does not pay.

        Under ZeRO 3 a weight is there only while its module computes.
        """
        pays = fusing_pays(positions, self.spec.vocabulary, self.denoiser.device)
        return self.denoiser.linear_head() if pays and not self.denoiser.collective else None

    def chunks(self, positions: int) -> int:
        """In how many parts so many positions go through the head; see `chunk_count`."""
        return chunk_count(self._positions if self.denoiser.collective else positions, self.spec.vocabulary)


def keeps_exactly(denoiser: Denoiser) -> bool:
    """Whether keys and values of earlier blocks stay what they are while a network writes later ones."""
    spec = denoiser.spec
    return "cache" in denoiser.capabilities and spec.attention == "block" and not spec.time_conditioned


def check_cache(denoiser: Denoiser, approximation: Approximation) -> None:
    """Refuse an approximation that a network can not make.

    Raises:
        UserError: why not.
    """
    denoiser.require("cache", f"sampler.cache={approximation}")
    why = None
    if denoiser.spec.time_conditioned:
        why = "this network reads a time, with which all that is kept changes"
    elif denoiser.collective:
        why = "under ZeRO 3 processes make their passes together, and these depend on each row"
    if why is not None:
        raise UserError(f"sampler.cache is {approximation!r}, but {why}; leave it out")
