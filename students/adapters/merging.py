"""Networks without adapters, of those that have some: a copy of the base, or the base with an adapter added to it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TypeVar

import torch
from transformers.pytorch_utils import Conv1D

from students.adapters.denoiser import CONFIG_FILE, WEIGHTS_FILE, AdaptedDenoiser
from students.adapters.layers import lora_layers
from students.planner import PlannedDenoiser
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.weights import weight_of

AnyDenoiser = TypeVar("AnyDenoiser", bound=Denoiser)


def plain_copy(denoiser: AnyDenoiser) -> AnyDenoiser:
    """A deep copy without the adapters that others have put into it."""
    copied = copy.deepcopy(denoiser)
    for name, layer in lora_layers(copied).items():
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, layer.get_base_layer())
    for module in copied.modules():
        module.__dict__.pop("peft_config", None)
    return copied


@torch.no_grad()
def merged(denoiser: Denoiser, dtype: torch.dtype = torch.float32) -> Denoiser:
    """A frozen copy that needs no adapter, parameters in ``dtype``; the adapter is added in float32 and rounded once.

    Buffers keep their type: in bfloat16, rotary frequencies would misplace late positions.
    """
    if isinstance(denoiser, PlannedDenoiser):
        return PlannedDenoiser(merged(denoiser.inner, dtype), copy.deepcopy(denoiser.planner).to(dtype)).requires_grad_(
            False
        )
    base = denoiser.base if isinstance(denoiser, AdaptedDenoiser) else denoiser
    copied = plain_copy(base).requires_grad_(False).eval()
    if isinstance(denoiser, AdaptedDenoiser):
        scale = denoiser.config.alpha / denoiser.config.rank
        for path, layer in denoiser.layers.items():
            weight = weight_of(copied.network.get_submodule(path))
            low_rank = weight_of(layer["lora_B"]).float() @ weight_of(layer["lora_A"]).float()
            low_rank = low_rank.T if isinstance(copied.network.get_submodule(path), Conv1D) else low_rank
            weight.data = (weight.float() + scale * low_rank).to(dtype)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, in PEFT's format, and not a model."""
    return (Path(folder) / CONFIG_FILE).is_file()


@torch.no_grad()
def merge_adapter(base: AnyDenoiser, folder: str | Path, dtype: torch.dtype = torch.float32) -> AnyDenoiser:
    """Merge a saved adapter into ``base`` itself, in place; it is added in float32 and rounded once, to ``dtype``.

    Raises:
        UserError: the adapter can not be read, or is of another model.
    """
    from peft import PeftModel

    if not (Path(folder) / WEIGHTS_FILE).is_file():  # PEFT would read a pickle, or take the folder for a hub name
        raise UserError(f"cannot put adapter {folder} on its base: it has no {WEIGHTS_FILE}; save the adapter again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name it is giving up
            warnings.filterwarnings("error", message="Found missing adapter keys")  # PEFT would make them up
            adapted = PeftModel.from_pretrained(base.network, str(folder))
        for layer in lora_layers(base.network).values():
            weight = weight_of(layer.get_base_layer())
            weight.data = (weight.float() + layer.get_delta_weight(adapted.active_adapter)).to(dtype)
        adapted.unload()
    except Exception as error:  # PEFT, safetensors and torch raise different types for one thing: it does not fit
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"cannot put adapter {folder} on its base ({reason}); give the base it was trained on"
        ) from error
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype)
    return base
