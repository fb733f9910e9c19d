"""MDLM (Sahoo et al. 2406.07524) as it is released: config.json with the sizes, and a ``backbone.`` prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachers.families.dit.family import DitFamily, Layout, flag, whole_number
from teachers.families.dit.shape import Shape
from teachers.families.family import Checkpoint


class Mdlm(DitFamily):
    """Checkpoints of model_type "mdlm"."""

    name = "mdlm"
    title = "an MDLM checkpoint"
    releases = ("kuleshov-group/mdlm-owt", "kuleshov-group/mdlm-no_flashattn-fp32-owt")

    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """See `DitFamily.layout`."""
        return Layout(
            flat_shape(checkpoint), whole_number(checkpoint, "model_length"), "backbone.",
            time_conditioned=flag(checkpoint, "time_conditioning"),
        )  # fmt: skip


def flat_shape(checkpoint: Checkpoint) -> Shape:
    """The sizes in the config.json of MDLM, BD3-LM and DUO."""
    keys = ("vocab_size", "hidden_dim", "cond_dim", "n_blocks", "n_heads")
    return Shape(*(whole_number(checkpoint, key) for key in keys))
