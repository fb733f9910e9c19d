"""SEDD (Lou et al. 2310.16834), the absorbing models: a network of log scores, which reads the true noise level.

At a masked position the score of y is p(x₀ = y) / (e^σ − 1), so the law of x₀ there is the softmax of the output's
linear layer without the mask's column: what the release subtracts from it, ln(e^σ − 1) and ln(V − 1), is the same for
every column. Its published weights are a pickle; `fewstep unpickle` writes what is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachers.families.dit.family import CAPABILITIES, DitFamily, Layout, refuse_unless, whole_number
from teachers.families.dit.shape import Shape
from teachers.families.family import Checkpoint


class Sedd(DitFamily):
    """Checkpoints whose config.json is SEDD's training configuration."""

    name = "sedd"
    title = "a SEDD checkpoint"
    capabilities = CAPABILITIES - {"cache"}  # whose keys and values have a time
    releases = ("louaaron/sedd-small", "louaaron/sedd-medium")

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return {"graph", "noise", "tokens", "model"} <= config.keys() and "model_type" not in config

    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """See `DitFamily.layout`."""
        refuse_unless(checkpoint, "graph.type", ("absorb",))  # "uniform" has no mask
        refuse_unless(checkpoint, "noise.type", ("loglinear",))  # the network reads σ, and others have another σ(t)
        sizes = nested_sizes(checkpoint)
        shape = Shape(whole_number(checkpoint, "tokens") + 1, *sizes)
        return Layout(shape, whole_number(checkpoint, "model.length"), time_conditioned=True)


def nested_sizes(checkpoint: Checkpoint) -> tuple[int, int, int, int]:
    """Hidden, conditioning, blocks and heads in the training configurations of SEDD and SDTT."""
    hidden, conditioning, blocks, heads = (
        whole_number(checkpoint, f"model.{key}") for key in ("hidden_size", "cond_dim", "n_blocks", "n_heads")
    )
    return hidden, conditioning, blocks, heads
