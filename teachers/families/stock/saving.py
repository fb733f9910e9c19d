"""Stock networks on disk, without what transformers would import to put them there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from teachers.families.stock.dtypes import TORCH, Dtypes


def save_network(network: PreTrainedModel, folder: Path, **options: Any) -> None:
    """``network.save_pretrained(folder, **options)``, which would import DeepSpeed to see if the network is its engine.

    Only where something else has imported DeepSpeed can it be.
    """
    from accelerate.utils import other

    other.is_deepspeed_available = _deepspeed_is_imported
    network.save_pretrained(folder, **options)


def released_tensors(network: PreTrainedModel) -> dict[str, Tensor]:
    """The network's tensors under the names that they have in the files it was read from; tied ones once."""
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in network.all_tied_weights_keys}
    return revert_weight_conversion(network, state)


def save_tensors(network: PreTrainedModel, tensors: dict[str, Tensor], folder: Path, **options: Any) -> None:
    """`save_network` with other tensors in place of the network's, under the names that the files shall have."""
    save_network(network, folder, state_dict=tensors, save_original_format=False, **options)


def rounding(network: PreTrainedModel, dtypes: Dtypes) -> Callable[[str, Tensor], Tensor]:
    """Name and value of a parameter → the value once it has been in a file with these types."""
    files = released_tensors(network) if dtypes.others else {}
    others = {files[name].data_ptr(): TORCH[dtype] for name, dtype in dtypes.others.items()}
    types = {name: others.get(p.data_ptr(), dtypes.usual_type) for name, p in network.named_parameters()}
    return lambda name, value: value.to(types[name]).to(value.dtype)


@contextmanager
def stock_names(network: PreTrainedModel) -> Iterator[None]:
    """While entered, the network is saved under its own class's names, not under those that it was read under."""
    names = vars(network).pop("_weight_conversions", None)
    try:
        yield
    finally:
        if names is not None:
            network._weight_conversions = names


@contextmanager
def parameters_as(network: nn.Module, values: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """While entered, the parameters have other values.

    Args:
        values: name and value of a parameter → what it is meanwhile.
    """
    kept = {name: parameter.data for name, parameter in network.named_parameters()}
    try:
        for name, parameter in network.named_parameters():
            parameter.data = values(name, parameter.data)
        yield
    finally:
        for name, parameter in network.named_parameters():
            parameter.data = kept[name]


def _deepspeed_is_imported() -> bool:
    return "deepspeed" in sys.modules
