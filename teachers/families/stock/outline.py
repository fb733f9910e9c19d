"""Stock networks without their weights, and whether a checkpoint's tensors are those that its config.json asks for.

All is compared by names and shapes, before a weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.families.family import Checkpoint, Traits
from teachers.families.stock import Stock
from teachers.families.stock.anatomy import window_of
from teachers.headers import Headers, Shapes, check_shapes, read_headers
from teachers.source import reason
from teachers.weights import weight_of

BUFFERS = re.compile(r"rotary_emb\.inv_freq$|(^|\.)position_ids$|\.attn\.(masked_)?bias$")
"""What older versions of transformers wrote beside the weights, and no network reads any more."""


def outline(checkpoint: Checkpoint, shape: PretrainedConfig, headers: Headers) -> PreTrainedModel:
    """A checkpoint's network on torch's meta device, whose tensors are those of its files.

    Compressed weights, and those of code that comes with a model, are left to whoever reads them.

    Args:
        shape: its stock config.
        headers: of its files.

    Raises:
        UserError: no network can be made of the shape, or the files hold another one.
    """
    family = checkpoint.family
    assert isinstance(family, Stock), "others have no stock class"
    try:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, trust_remote_code=checkpoint.trusted)
        if "quantization_config" in checkpoint.config or made.is_custom_code():
            return made
        if family.runs_code:
            check_stock(made, headers, checkpoint.name)
        else:
            check_release(made, headers, family.key_names, checkpoint.name)
    except UserError:
        raise
    except Exception as error:  # whatever a value out of range meets first: transformers or torch
        place = checkpoint.folder / "config.json"
        raise UserError(f"no network can be made of {place} ({reason(error)}); put the release's back") from error
    return made


def check_release(model: PreTrainedModel, headers: Headers, key_names: Mapping[str, str], name: str) -> None:
    """Refuse files that do not hold exactly the tensors of a release.

    Args:
        model: of `outline`.
        key_names: see `teachers.families.language.family.LanguageFamily`.
        name: the checkpoint's, for the message.

    Raises:
        UserError: tensors are missing, left over or of other shapes.
    """
    state, tied = model.state_dict(), set(model.all_tied_weights_keys)
    conversions = get_model_conversion_mapping(model, dict(key_names), add_legacy=False)
    object.__setattr__(model, "_weight_conversions", conversions)  # what loading would have left there
    wanted, needed = (
        {key: tuple(tensor.shape) for key, tensor in revert_weight_conversion(model, part).items()}
        for part in (state, {key: tensor for key, tensor in state.items() if key not in tied})
    )
    check_shapes(_without_buffers(headers.shapes), wanted, name, optional=wanted.keys() - needed.keys())


def check_stock(model: PreTrainedModel, headers: Headers, name: str) -> None:
    """Refuse files of another network than a stock class's, under any of the names that the class reads.

    Tensors beside the network, such as a second head, are left alone.

    Args:
        model: of `outline`.
        name: the checkpoint's, for the message.

    Raises:
        UserError: tensors of the network are missing, left over or of other shapes.
    """
    state = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    given: Shapes = {}
    for key, (own, stacked) in _own_names(model, headers.shapes).items():
        for part in _parts(model, own) if stacked else ():
            given[part] = state.get(part, ())
        if not stacked:
            given[own] = headers.shapes[key]
    network = f"{model.base_model_prefix}."
    given = {own: shape for own, shape in given.items() if own in state or own.startswith(network)}
    check_shapes(_without_buffers(given), state, name, optional=_optional(model, state))


def _parts(model: PreTrainedModel, own: str) -> list[str]:
    """The parameters that one or several tensors of a file become, by the name of the first."""
    for entry in get_model_conversion_mapping(model):
        first, *others = entry.target_patterns
        if isinstance(entry, WeightConverter) and others and first in own:
            return [own, *(own.replace(first, other) for other in others)]
    return [own]


def strangers(model: PreTrainedModel, headers: Headers) -> list[str]:
    """Names of tensors that the network does not read."""
    own_names = _own_names(model, _without_buffers(headers.shapes))
    return [key for key, (own, _) in own_names.items() if own not in model.state_dict()]


def _own_names(model: PreTrainedModel, shapes: Shapes) -> dict[str, tuple[str, bool]]:
    """Name in the files → the class's own, and whether the tensor is only a part of that parameter."""
    conversions, state = get_model_conversion_mapping(model), model.state_dict()
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    own_names: dict[str, tuple[str, bool]] = {}
    for key in shapes:
        own, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if own not in state and key in state:
            own, pattern = key, None
        own_names[key] = own, pattern is not None
    return own_names


def _optional(model: PreTrainedModel, state: Shapes) -> set[str]:
    """Parameters that are there without being in a file."""
    unread = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return set(model.all_tied_weights_keys) | {key for key in state if any(p.search(key) for p in unread)}


def _without_buffers(shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not BUFFERS.search(key)}


def traits(checkpoint: Checkpoint, denoiser: Denoiser) -> Traits:
    """See `teachers.families.family.Family.traits`."""
    model = denoiser.network
    assert isinstance(model, PreTrainedModel)
    fields = model.config.to_dict()
    rotary, window = fields.get("rope_parameters"), window_of(model.config)
    headers = read_headers(checkpoint.folder, checkpoint.config)
    plain = "quantization_config" not in checkpoint.config and checkpoint.family.runs_code
    return Traits(
        type(model).__name__,
        None if rotary is None else ", ".join(f"{key} {value}" for key, value in rotary.items()),
        None if window is None else window[1],
        weight_of(model.get_input_embeddings()) is weight_of(model.get_output_embeddings()),
        tuple(strangers(model, headers)) if plain and not model.is_custom_code() else (),
    )
