"""int8 weights in the compressed-tensors format "pack-quantized", which stock transformers and vLLM read.

Weight-only (W8A16): every linear layer's weight is rounded to 8 bits with one scale an output channel, four an int32.
Embeddings and the head are not rounded: they decide the tokens, and a tied head is the embedding. They, and whatever
else has two dimensions or more, are stored in bfloat16; norms and biases stay float32, and so does the computation.
"""

from __future__ import annotations

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

LARGEST = 127  # symmetric: −128 is left out, so that the channel's largest weight is met from both sides
INT8 = QuantizationScheme(
    targets=["Linear"],
    weights=QuantizationArgs(
        num_bits=8,
        type=QuantizationType.INT,
        strategy=QuantizationStrategy.CHANNEL,
        symmetric=True,
        dynamic=False,
    ),
    format=CompressionFormat.pack_quantized,
)


def pack_int8(weight: Tensor) -> dict[str, Tensor]:
    """Round a weight to int8 and pack it.

    Args:
        weight: (out, in), any floating type.

    Returns:
        ``weight_packed`` (out, ⌈in/4⌉) int32, ``weight_scale`` (out, 1) float32, ``weight_shape`` (2,) int64.
        No weight moves by more than half its channel's scale.
    """
    weight = weight.detach().float()
    # a channel of zeros has no largest weight; any positive scale gives its zeros back
    scale = (weight.abs().amax(1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, INT8)


def unpack_int8(packed: dict[str, Tensor]) -> Tensor:
    """The (out, in) float32 weight that readers of the format compute from what `pack_int8` returns."""
    return PackedQuantizationCompressor.decompress(packed, INT8)["weight"]


def int8_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict to store instead of the model's own; the model is not changed. Tied tensors appear once."""
    linear = _linear_layers(model)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if name in model.all_tied_weights_keys:
            continue
        if layer in linear and kind == "weight":
            state |= {f"{layer}.{key}": value for key, value in pack_int8(tensor).items()}
        else:
            state[name] = tensor.to(torch.bfloat16) if tensor.ndim > 1 else tensor
    return state


def int8_config(model: PreTrainedModel) -> dict[str, Any]:
    """The ``quantization_config`` that goes into config.json beside `int8_state`."""
    ignored = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    config = QuantizationConfig(
        config_groups={"group_0": INT8},
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignored,
    )
    return config.model_dump(mode="json")


def _linear_layers(model: PreTrainedModel) -> set[str]:
    """Names of the layers that are rounded: every plain linear layer but the head."""
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head}
