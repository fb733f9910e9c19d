"""A diffusion transformer without its weights, of any depth, for planning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from teachers.denoiser import UNBOUNDED
from teachers.families.dit.denoiser import DitDenoiser, Release
from teachers.families.dit.family import DitFamily, written_settings
from teachers.families.dit.loading import spec_of
from teachers.families.dit.network import DiffusionTransformer
from teachers.families.family import Checkpoint


@dataclass(frozen=True)
class DitSketch:
    """What a config.json says of a network; fields are called as in the configs of stock transformers.

    Attributes:
        vocab_size: V.
        num_hidden_layers: blocks.
        max_position_embeddings: tokens of the longest row.
    """

    checkpoint: Checkpoint
    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int = UNBOUNDED

    def denoiser(self, options: Mapping[str, Any], layers: int | None = None) -> DitDenoiser:
        """The network, untrained; on torch's meta device it costs nothing.

        Args:
            options: of `teachers.families.family.OPTIONS`.
            layers: how many; all by default.

        Raises:
            UserError: options that its family does not take.
        """
        self.checkpoint.check_options(options, "teacher.")
        family = self.checkpoint.family
        assert isinstance(family, DitFamily)
        layout = family.layout(self.checkpoint, {**written_settings(self.checkpoint), **options})
        shape = layout.shape if layers is None else replace(layout.shape, blocks=layers)
        release = Release(layout.prefix, {}, family.capabilities)
        return DitDenoiser(DiffusionTransformer(shape), spec_of(layout, shape.vocabulary - 1, None), release).eval()


def sketch(checkpoint: Checkpoint) -> DitSketch:
    """See `teachers.families.family.Family.sketch`."""
    family = checkpoint.family
    assert isinstance(family, DitFamily)
    shape = family.layout(checkpoint, written_settings(checkpoint)).shape
    return DitSketch(checkpoint, shape.vocabulary, shape.blocks)
