"""A head that is one linear layer, as what is fused with it reads it: some columns of the vocabulary at a time.

A product with all N positions and some columns is as fast as with all of them, and its logits stay in a cache. What is
made of a chunk, such as its part of a sum of exponentials, is a number or two a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from teachers.ops.parts import entries_at_once

LEAST_COLUMNS, TILE = 256, 128
"""Columns of a chunk at least, which a matrix product needs to be fast, and those of a Triton program [own]."""

WIDE, MANY = 4096, 2**22
"""Entries of a vocabulary, and of all positions' logits, from which on fusing pays [own]."""


@dataclass(frozen=True)
class LinearHead:
    """Logits W h + b of tokens, in float32 or finer, whatever the weights are.

    Attributes:
        weight: (V, H).
        offset: (V,) float32, the bias; −∞ where an entry is no text.
    """

    weight: Tensor
    offset: Tensor

    @staticmethod
    def of(layer: nn.Module, excluded: Tensor) -> LinearHead | None:
        """Of torch's own linear layer; None for any other, whose weights may be compressed or elsewhere.

        Args:
            excluded: (E,) int64 ids that are no text.
        """
        if type(layer) is not nn.Linear:
            return None
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        wide = bias.to(torch.promote_types(bias.dtype, torch.float32))
        return LinearHead(layer.weight, wide.index_fill(0, excluded, -torch.inf))

    def logits(self, features: Tensor, columns: slice) -> Tensor:
        """(N, C) of (N, H) features."""
        return (
            nn.functional.linear(features, self.weight[columns]).to(self.offset, copy=True).add_(self.offset[columns])
        )

    def chunks(self, positions: int) -> Iterator[slice]:
        """Runs of columns that cover the vocabulary, whose logits at so many positions are of a fitting size."""
        width = max(LEAST_COLUMNS, entries_at_once(self.weight.device) // max(1, positions))
        return (slice(start, start + width) for start in range(0, len(self.weight), width))


def fusing_pays(positions: int, vocabulary: int, device: torch.device) -> bool:
    """Whether a draw in chunks of the vocabulary takes less time than one from all log-probabilities.

    On a CPU it was measured (docs/vocabulary.md). Other devices need Triton for it, lest the host wait for them.
    """
    large = vocabulary >= WIDE and positions * vocabulary >= MANY
    return large and (device.type == "cpu" or (device.type == "cuda" and has_triton()))


@cache
def has_triton() -> bool:
    """Whether Triton can be imported, which torch's wheels for CUDA bring; it is not imported here."""
    return find_spec("triton") is not None


def runs_triton(tensor: Tensor) -> bool:
    """Whether what is computed from a tensor is computed by Triton's kernels."""
    return tensor.is_cuda and has_triton()
