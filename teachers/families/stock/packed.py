"""Weights of 8 or 4 bits in the compressed-tensors format "pack-quantized", which stock transformers and vLLM read.

Weight-only: every linear layer's weight is rounded, with one scale an output channel (int8, W8A16) or one a group of
inputs (int4, W4A16), as many an int32 as fit. Embeddings and the head are not rounded: they decide the tokens, and a
tied head is the embedding. They, and whatever else has two dimensions or more, are stored in bfloat16; norms and biases
stay float32, and so does the computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from teachers.denoiser import Compression
from teachers.errors import UserError

BITS: dict[Compression, int] = {"int8": 8, "int4": 4}
LARGEST_GROUP = 128  # inputs that share a scale in int4, as W4A16 checkpoints have it
SMALLEST_GROUP = 16  # with a float32 scale for fewer, 4 bits would take the room of 8


def scheme(compression: Compression, group_size: int | None = None) -> QuantizationScheme:
    """How weights are rounded: symmetrically, with one scale an output channel, or one a ``group_size`` of inputs."""
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=BITS[compression],
            type=QuantizationType.INT,
            strategy=QuantizationStrategy.CHANNEL if group_size is None else QuantizationStrategy.GROUP,
            group_size=group_size,
            symmetric=True,
            dynamic=False,
        ),
        format=CompressionFormat.pack_quantized,
    )


def scheme_of(model: PreTrainedModel, compression: Compression) -> QuantizationScheme:
    """How a model's weights are rounded, all in one way: readers fuse layers.

    int4 has groups of `LARGEST_GROUP`, or of the largest power of two that divides the inputs of every layer, and below
    `SMALLEST_GROUP` one scale a channel.

    Raises:
        UserError: most of the weights are in no linear layer.
    """
    _check_layers(model, compression)
    if compression == "int8":
        return scheme(compression)
    group_size = math.gcd(LARGEST_GROUP, *(layer.in_features for layer in _linear_layers(model).values()))
    return scheme(compression, group_size if group_size >= SMALLEST_GROUP else None)


def pack(weight: Tensor, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """Round a weight and pack it.

    Args:
        weight: (out, in), any floating type.

    Returns:
        ``weight_packed`` (out, ⌈in · bits / 32⌉) int32, ``weight_scale`` (out, G) float32 with one column or one a
        group, ``weight_shape`` (2,) int64. No weight moves by more than half its scale.
    """
    assert scheme.weights is not None, "`scheme` gives one that rounds weights"
    # 1. (out, G, in/G): what shares a scale
    groups = weight.detach().float().unflatten(1, (-1, scheme.weights.group_size or weight.shape[1]))
    # 2. symmetric: the lowest number is left out, so that the largest weight is met from both sides
    largest = 2 ** (scheme.weights.num_bits - 1) - 1
    # zeros alone have no largest weight; any positive scale gives them back
    scale = (groups.abs().amax(2) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return PackedQuantizationCompressor.compress({"weight": groups.flatten(1), "weight_scale": scale}, scheme)


def unpack(packed: dict[str, Tensor], scheme: QuantizationScheme) -> Tensor:
    """The (out, in) float32 weight that readers of the format compute from what `pack` returns."""
    return PackedQuantizationCompressor.decompress(packed, scheme)["weight"]


def packed_state(model: PreTrainedModel, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """The state dict to store instead of the model's own; the model is not changed. Tied tensors appear once."""
    linear = _linear_layers(model)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if name in model.all_tied_weights_keys:
            continue
        if layer in linear and kind == "weight":
            state |= {f"{layer}.{key}": value for key, value in pack(tensor, scheme).items()}
        else:
            state[name] = tensor.to(torch.bfloat16) if tensor.ndim > 1 else tensor
    return state


def read_weights(model: PreTrainedModel, scheme: QuantizationScheme) -> Callable[[str, Tensor], Tensor]:
    """Name and value of a parameter → what readers of `packed_state` make of it, in float32."""
    packed = {f"{name}.weight" for name in _linear_layers(model)}

    def read(name: str, weight: Tensor) -> Tensor:
        if name in packed:
            return unpack(pack(weight, scheme), scheme)
        return weight.to(torch.bfloat16).float() if weight.ndim > 1 else weight

    return read


def quantization_config(model: PreTrainedModel, scheme: QuantizationScheme) -> dict[str, Any]:
    """The ``quantization_config`` that goes into config.json beside `packed_state`."""
    ignored = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignored,
    )
    return config.model_dump(mode="json")


def _check_layers(model: PreTrainedModel, compression: Compression) -> None:
    """Refuse stacked experts, which stock classes read compressed under other names, and layers of a class of its own.

    Raises:
        UserError: the model has such.
    """
    convolutions = {id(p) for module in model.modules() if isinstance(module, nn.Conv1d) for p in module.parameters()}
    stacked = [name for name, p in model.named_parameters() if p.ndim > 2 and id(p) not in convolutions]
    if stacked or not _linear_layers(model):
        why = f"weights in {stacked[0]}, which is no linear layer" if stacked else "no linear layers but the head"
        raise UserError(
            f"{compression} rounds linear layers, and {type(model).__name__} has {why}; export it without --compress"
        )


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name → layer of those that are rounded: every plain linear layer but the head."""
    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear and module is not head}
