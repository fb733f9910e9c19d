"""The discriminator that DiDi-Instruct releases beside its student: the same network, with a head of its own.

The head reads the last block as it is, without norm or modulation: linear, SiLU, linear, one logit a token. Its weights
are spectrally normalised, W / (uᵀ W v), with the u and v of the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from teachers.errors import UserError
from teachers.families.dit.denoiser import DitDenoiser, Release
from teachers.families.dit.didi_instruct import DISCRIMINATOR_FILE
from teachers.families.dit.family import Layout
from teachers.families.dit.loading import empty_network, fill_network, spec_of
from teachers.families.dit.network import BareOutput
from teachers.families.family import Checkpoint, Reading
from teachers.headers import read_header
from teachers.weights import check_finite, read_weights

HEAD = "output_layer.main."


def load_discriminator(checkpoint: Checkpoint, layout: Layout) -> tuple[DitDenoiser, nn.Sequential]:
    """The backbone, whose hidden states are the last block's, and the head on them; both frozen.

    Args:
        layout: of the student.

    Raises:
        UserError: the file is not whole, or of another network than the student's.
    """
    path = checkpoint.folder / DISCRIMINATOR_FILE
    shapes = {name: shape for name, shape in read_header(path).shapes.items() if not name.startswith(HEAD)}
    network = empty_network(checkpoint, layout, shapes, BareOutput())
    tensors = read_weights(path, checkpoint.name)
    head = {name.removeprefix(HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(HEAD)}
    fill_network(network, tensors, layout.prefix, Reading(torch.float32), checkpoint.name)
    release = Release(layout.prefix, {}, checkpoint.family.capabilities, time_optional=layout.time_optional)
    backbone = DitDenoiser(network, spec_of(layout, layout.shape.vocabulary - 1, None), release)
    layers = nn.Sequential(_linear(checkpoint, head, "0."), nn.SiLU(), _linear(checkpoint, head, "2."))
    return backbone.requires_grad_(False).eval(), layers.requires_grad_(False)


def _linear(checkpoint: Checkpoint, head: Mapping[str, Tensor], name: str) -> nn.Linear:
    """A layer with its weight divided by the spectral norm that the file's u and v estimate."""
    try:
        weight, bias, u, v = (head[name + part].float() for part in ("weight_orig", "bias", "weight_u", "weight_v"))
        weight = weight / (u @ weight @ v)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint.folder / DISCRIMINATOR_FILE} has no whole {HEAD}{name.rstrip('.')} (weight_orig, bias, "
            "weight_u and weight_v); download the file again, or remove it to go on without it"
        ) from error
    check_finite([(HEAD + name, weight)], checkpoint.name)
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return layer
