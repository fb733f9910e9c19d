"""The layers of a network that adapters sit on: which there are, and how one more adapter is put into them.

LoRA (2106.09685) adds alpha/rank · B A x to linear layers, and B starts at zero, so every network starts as the
teacher. PEFT puts the layers in; which adapter is active, we say.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from students.adapters.config import AdapterConfig
from teachers.denoiser import Denoiser
from teachers.errors import UserError, nearest

if TYPE_CHECKING:  # PEFT takes as long to import as the rest of this floor, and most students have no adapter
    from peft import LoraConfig
    from peft.tuners.lora import Linear as LoraLinear

EXPERT_PARTS = (".gate_proj", ".up_proj", ".down_proj")


def peft_configs(model: nn.Module) -> dict[str, LoraConfig]:
    """What PEFT notes of the adapters in a model, by their names."""
    return model.__dict__.get("peft_config", {})


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Name → layer of those that carry adapters."""
    if not any(peft_configs(module) for module in model.modules()):
        return {}
    from peft.tuners.lora import Linear as LoraLinear

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def check_targets(base: Denoiser, config: AdapterConfig) -> None:
    """Refuse targets that would be passed over in silence, and the head, whose weights may be the embedding's too."""
    if config.targets == "all-linear":
        return
    linear = linear_names(base)
    for target in config.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            allowed = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(
                f"adapter target {target!r} is the end of no linear layer's name{nearest(target, allowed)}; "
                f"this model has {', '.join(allowed)}"
            )


def linear_names(base: Denoiser) -> list[str]:
    """The names of a network's linear layers, but for the head's.

    Of a network with experts, none that is called as a part of an expert is: PEFT would adapt the experts instead.
    """
    adapters = tuple(f"{name}." for name in lora_layers(base.network))
    names = [
        name.removesuffix(".base_layer")
        for name, module in base.network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not base.output_layer
        if not name.startswith(adapters) or name.endswith(".base_layer")
    ]
    return [name for name in names if not (has_experts(base.network) and name.endswith(EXPERT_PARTS))]


def has_experts(network: nn.Module) -> bool:
    """Whether weights of several layers are kept as one, as those of experts are."""
    return any(parameter.ndim > 2 for parameter in network.parameters())


def insert_adapter(base: Denoiser, config: AdapterConfig) -> tuple[str, list[str]]:
    """Put one more adapter into a denoiser's network, inactive.

    PEFT keeps one active adapter a layer and trains that one alone. Here all layers read one list, so that switching is
    one assignment, and no adapter's ``requires_grad`` follows it.

    Returns:
        The adapter's name, and the list of active adapters.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from students.adapters.linear import AdaptedLinear

    model, targets = base.network, config.targets
    of_transformers = isinstance(model, PreTrainedModel)
    if targets == "all-linear" and (has_experts(model) or not of_transformers):
        # which layer is the head, PEFT knows of models of transformers alone; and it would adapt experts, too
        targets = linear_names(base)
    before = list(lora_layers(model).values())
    active = before[0]._active_adapter if before else []
    assert isinstance(active, list), "the one that this function has put there"
    others = [p for layer in before for adapters in (layer.lora_A, layer.lora_B) for p in adapters.parameters()]
    trained = [p.requires_grad for p in others]
    name = f"adapter{len(peft_configs(model))}"
    alpha: Any = config.alpha  # declared as an int, and only ever divided by the rank
    lora = LoraConfig(
        task_type="CAUSAL_LM" if of_transformers else None,
        base_model_name_or_path=model.config.name_or_path if of_transformers else None,
        r=config.rank,
        lora_alpha=alpha,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # several is the point
        with as_drawn():
            inject_adapter_in_model(lora, model, name)
    for parameter, requires_grad in zip(others, trained, strict=True):
        parameter.requires_grad_(requires_grad)
    for layer in lora_layers(model).values():
        layer.__class__ = AdaptedLinear
        layer._active_adapter = active
        for part in ("lora_A", "lora_B"):
            if part in layer._modules:  # still found by PEFT, but no longer among the base's own parameters
                object.__setattr__(layer, part, layer._modules.pop(part))
    return name, active


@contextmanager
def as_drawn() -> Iterator[None]:
    """Leave new adapters in the float32 that they are drawn in: PEFT rounds them to what the base is in."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    name = "_move_adapter_to_device_of_base_layer"
    moving = getattr(BaseTunerLayer, name)
    setattr(BaseTunerLayer, name, lambda layer, adapter, device=None: None)
    try:
        yield
    finally:
        setattr(BaseTunerLayer, name, moving)
