"""DiDi-Instruct (Zheng et al. 2509.25035): the averaged student, and the discriminator that guides its sampling.

The release reads one network in two ways. Its ancestral sampler feeds σ = 0, as MDLM does; the guided sampler of its
published evaluation feeds the true σ. Here σ is 0 unless ``time_conditioned`` is set, or `timed` is asked for.
Of its config.json only parts are known, so what it does not say is read from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teachers.errors import UserError
from teachers.families.dit.family import (
    EMBEDDING,
    DitFamily,
    Layout,
    entry,
    flag,
    refuse_flag,
    shapes_of,
    whole_number,
    written_settings,
)
from teachers.families.dit.shape import Shape
from teachers.families.family import Checkpoint

if TYPE_CHECKING:
    from torch import nn

    from teachers.denoiser import Denoiser

LENGTH = 1024  # of all these releases [code]
DISCRIMINATOR_FILE = "discriminator.safetensors"


class DidiInstruct(DitFamily):
    """Checkpoints whose config.json has the sections of DiDi-Instruct's training configuration."""

    name = "didi-instruct"
    title = "a DiDi-Instruct checkpoint"
    releases = ("haoyangzheng/didi-instruct-small",)
    options = frozenset({"mask_id", "time_conditioned"})
    left_out = ("It holds no discriminator: the release's judges the texts of the released student.",)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return {"model", "algo", "vocab_size"} <= config.keys() and "model_type" not in config

    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """See `DitFamily.layout`."""
        refuse_flag(checkpoint, "algo.causal_attention", "an autoregressive model is no denoiser")
        length = LENGTH if entry(checkpoint, "model.length") is None else whole_number(checkpoint, "model.length")
        timed = settings.get("time_conditioned")
        timed = flag(checkpoint, "algo.time_conditioning") if timed is None else timed
        return Layout(nested_shape(checkpoint), length, time_conditioned=timed, time_optional=True)

    def discriminator(self, checkpoint: Checkpoint, **options: Any) -> tuple[Denoiser, nn.Module] | None:
        """See `Family.discriminator`."""
        if not (checkpoint.folder / DISCRIMINATOR_FILE).is_file():
            return None
        from teachers.families.dit.discriminator import load_discriminator

        return load_discriminator(checkpoint, self.layout(checkpoint, written_settings(checkpoint) | options))


def nested_shape(checkpoint: Checkpoint) -> Shape:
    """The sizes that config.json says, those that it does not say from the weights; loading compares the two.

    Raises:
        UserError: the weights are not those of such a network.
    """
    names, own = ("vocab_size", "model.hidden_size", "model.cond_dim", "model.n_blocks", "model.n_heads"), {}
    if any(entry(checkpoint, name) is None for name in names):
        own = dict(zip(names, _sizes_of_weights(checkpoint), strict=True))
    return Shape(*(own[name] if entry(checkpoint, name) is None else whole_number(checkpoint, name) for name in names))


def _sizes_of_weights(checkpoint: Checkpoint) -> tuple[int, int, int, int, int]:
    shapes = shapes_of(checkpoint)
    try:
        vocabulary, hidden = shapes[EMBEDDING]
        (conditioning,), (half_head,) = shapes["sigma_map.mlp.2.bias"], shapes["rotary_emb.inv_freq"]
        blocks = sum(name.endswith(".norm1.weight") for name in shapes)
        return vocabulary, hidden, conditioning, blocks, hidden // (2 * half_head)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"model {checkpoint.name!r} has weights that are not those of DiDi-Instruct's network, and its config.json "
            "does not say their sizes; give the released files as they are"
        ) from error
