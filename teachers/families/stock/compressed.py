"""Compressed checkpoints read as plain ones: each weight is unpacked where transformers' loader asks for it.

Of the network nothing remains that says it was compressed, so whatever is made of it is plain: students, adapters,
exports. Unpacking a whole model is compressed-tensors' own job elsewhere, which keeps the weights in shared memory as
soon as torch has a process group; here none is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from teachers.errors import UserError
from teachers.headers import Headers
from teachers.source import reason

if TYPE_CHECKING:  # slow to import, and most checkpoints are plain
    from compressed_tensors.quantization import QuantizationScheme

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
PACKED = ".weight_packed"
REMEDY = "give the model it was made from, or one with packed integer weights (W8A16, W4A16) of compressed-tensors"
PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
"""What the format stores of one weight; those after the first three not always."""
NEEDED = 3


@dataclass(frozen=True)
class PackedWeight:
    """A weight on disk, which transformers indexes as it does a slice of a file: `weight[...]` reads and unpacks it.

    Attributes:
        parts: of `PARTS` → slice of a file.
        scheme: how it was rounded.
    """

    parts: Mapping[str, Any]
    scheme: QuantizationScheme

    def __getitem__(self, index: Any) -> Tensor:
        from teachers.families.stock.packed import unpack

        parts = {name: part[...] for name, part in self.parts.items()}
        # the product of integer and scale is rounded once, to what the network computes in
        parts["weight_scale"] = parts["weight_scale"].float()
        return unpack(parts, self.scheme)[index]


def compression_of(config: Mapping[str, Any], name: str) -> list[QuantizationScheme]:
    """How the linear layers of a checkpoint are compressed, group by group; empty for a plain one.

    Args:
        config: its config.json.
        name: the model's, for the message.

    Raises:
        UserError: in another way than with weights packed as integers.
    """
    section = config.get("quantization_config")
    if section is None:
        return []
    method = section.get("quant_method") if isinstance(section, dict) else section
    if method != METHOD:
        raise UserError(f"model {name!r} is compressed by {method!r}, which is not read here; {REMEDY}")
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    known = {key: value for key, value in section.items() if key in QuantizationConfig.model_fields}
    try:
        quantization = QuantizationConfig.model_validate(known)
    except ValueError as error:
        raise UserError(f"the quantization_config of model {name!r} is damaged ({reason(error)}); {REMEDY}") from error
    schemes = [group for group in quantization.config_groups.values() if isinstance(group, QuantizationScheme)]
    for scheme in schemes:
        _check_scheme(scheme, scheme.format or quantization.format, name)
    return schemes


def _check_scheme(scheme: QuantizationScheme, layout: str, name: str) -> None:
    if layout != FORMAT or scheme.weights is None or scheme.weights.type != "int":
        raise UserError(f"model {name!r} is compressed as {str(layout)!r}, which is not read here; {REMEDY}")
    if scheme.input_activations is not None or scheme.output_activations is not None:
        raise UserError(f"model {name!r} rounds activations as well as weights, which is not done here; {REMEDY}")


def plain_tensors(headers: Headers, schemes: Sequence[QuantizationScheme], name: str) -> dict[str, Any]:
    """The tensors of a compressed checkpoint under the names that they have in a plain one, to be read one by one.

    Args:
        schemes: of `compression_of`.
        name: the model's, for the message.

    Returns:
        Name → a slice of a file, or a `PackedWeight`.

    Raises:
        UserError: a packed weight without its scale or shape.
    """
    files = {path: safe_open(path, "pt") for path in headers.files}
    slices = {key: files[header.file].get_slice(key) for key, header in headers.tensors.items()}
    for layer in [key.removesuffix(PACKED) for key in slices if key.endswith(PACKED)]:
        parts = {part: slices.pop(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in slices}
        if len(parts) < NEEDED:
            raise UserError(
                f"model {name!r} has {layer}{PACKED} without its {' and '.join(PARTS[1:NEEDED])}; download it again"
            )
        slices[f"{layer}.weight"] = PackedWeight(parts, _scheme_of(layer, schemes))
    return slices


def _scheme_of(layer: str, schemes: Sequence[QuantizationScheme]) -> QuantizationScheme:
    """The one that names the layer, or else the first, which names a class of layers."""
    from compressed_tensors.utils.match import match_name

    return next((s for s in schemes if any(match_name(layer, target) for target in s.targets)), schemes[0])
