"""BD3-LM (Arriola et al. 2503.09573): block-causal attention over what was written before; and its full-attention
pretraining release, which is the same class with ``cross_attn`` false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from teachers.errors import UserError
from teachers.families.dit.family import DitFamily, Layout, entry, flag, refuse_flag, shapes_of, whole_number
from teachers.families.dit.mdlm import flat_shape
from teachers.families.family import Checkpoint, Facts

SCALARS = frozenset({"sampling_eps_min", "sampling_eps_max"})
"""Of the training's noise; no parameters of the network."""


class Bd3lm(DitFamily):
    """Checkpoints of model_type "bd3lm"."""

    name = "bd3lm"
    title = "a BD3-LM checkpoint"
    releases = (
        "kuleshov-group/bd3lm-owt-block_size4", "kuleshov-group/bd3lm-owt-block_size8",
        "kuleshov-group/bd3lm-owt-block_size16", "kuleshov-group/bd3lm-owt-block_size1024-pretrain",
    )  # fmt: skip
    options = frozenset({"mask_id", "attention", "block_size"})

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return replace(super().facts(), attention="blocks of block_size, or full")

    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """Attention and block size are the config's, or another one that is asked for; see `DitFamily.layout`."""
        refuse_flag(checkpoint, "causal", "an autoregressive model is no denoiser")
        refuse_flag(checkpoint, "time_conditioning", "each block would have a time of its own")
        if entry(checkpoint, "adaln") is not None and not flag(checkpoint, "adaln"):
            raise UserError(
                f"{checkpoint.folder / 'config.json'} has adaln false: blocks without modulation are not computed "
                "here; give a checkpoint with adaln true, as the released ones are"
            )
        attention = settings.get("attention") or self._attention(checkpoint, settings)
        if attention == "full" and settings.get("block_size") is not None:
            raise UserError(
                f"block_size is {settings['block_size']} and attention 'full', which has no blocks; leave out one"
            )
        block_size = settings.get("block_size") or whole_number(checkpoint, "block_size")
        return Layout(
            flat_shape(checkpoint), whole_number(checkpoint, "model_length"), "backbone.",
            SCALARS & shapes_of(checkpoint).keys(), attention, block_size if attention == "block" else None,
        )  # fmt: skip

    @staticmethod
    def _attention(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
        return "block" if settings.get("block_size") or flag(checkpoint, "cross_attn") else "full"
