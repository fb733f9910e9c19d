"""The sizes of a diffusion transformer; without torch, so that a config can be read for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a diffusion transformer.

    Attributes:
        vocabulary: V, every column of the output.
        hidden: H, width of the residual stream.
        conditioning: C, width of the noise level's vector.
        blocks, heads: how many.
    """

    vocabulary: int
    hidden: int
    conditioning: int
    blocks: int
    heads: int
