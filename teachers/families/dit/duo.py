"""DUO (Sahoo et al. 2506.10892): the same network, and no mask token.

Its noise replaces a token by one drawn uniformly from all V entries, and a token may change until the end. So its law
of x₀ can be asked for, at a time, which no canvas shows; whatever begins with masks (samplers, objectives, exports) is
refused. As a mask id it has V, which no canvas holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from teachers.families.dit.family import NETWORK, DitFamily, Layout, refuse_flag, whole_number
from teachers.families.dit.mdlm import flat_shape
from teachers.families.family import Checkpoint, Facts


class Duo(DitFamily):
    """Checkpoints of model_type "duo"."""

    name = "duo"
    title = "a DUO checkpoint"
    releases = ("s-sahoo/duo", "s-sahoo/duo-distilled")
    capabilities = NETWORK
    options = frozenset()

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return replace(super().facts(), mask_id="none: a token may change until the end")

    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """See `DitFamily.layout`."""
        refuse_flag(checkpoint, "causal", "an autoregressive model is no denoiser")
        length = whole_number(checkpoint, "model_length")
        return Layout(flat_shape(checkpoint), length, "backbone.", time_conditioned=True)
