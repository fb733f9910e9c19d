"""One frozen base, many networks: the teacher is the base itself, student and critic are LoRA adapters on it (PEFT).

LoRA (2106.09685) adds alpha/rank · B A x to linear layers, and B starts at zero, so every network starts as the
teacher. PEFT puts the layers in; which adapter is active, we say. None is, except while an `AdaptedDenoiser` computes:
so the base always gives the teacher's own output, whoever was called before it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import Field, PositiveInt, field_validator
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from students.planner import PlannedDenoiser
from teachers.cache import Window
from teachers.canvas import Canvas
from teachers.compilation import Compilation
from teachers.denoiser import Compression, Contexts, Denoiser
from teachers.errors import UserError, nearest
from teachers.ops.head import LinearHead
from teachers.section import Section
from teachers.weights import weight_of

if TYPE_CHECKING:  # PEFT takes as long to import as the rest of this floor, and most students have no adapter
    from peft import LoraConfig
    from peft.tuners.lora import Linear as LoraLinear

AnyDenoiser = TypeVar("AnyDenoiser", bound=Denoiser)

EXPERT_PARTS = (".gate_proj", ".up_proj", ".down_proj")
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names


class AdapterConfig(Section):
    """A LoRA adapter.

    Attributes:
        rank: columns of A's output [own].
        alpha: the adapter's output is multiplied by alpha/rank [own].
        targets: "all-linear", every linear layer but the head (2305.14314 [paper]), or the last parts of the names of
            linear layers, e.g. ``[q_proj, v_proj]`` (2106.09685 [paper]). In networks with experts, those of attention.
    """

    rank: PositiveInt = 16
    alpha: float = Field(default=32.0, gt=0)
    targets: Literal["all-linear"] | list[str] = "all-linear"

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, targets: Any) -> Any:
        names = isinstance(targets, list) and targets and all(isinstance(target, str) and target for target in targets)
        if targets != "all-linear" and not names:
            raise ValueError(f"{targets!r} is neither 'all-linear' nor a list of layer names such as [q_proj, v_proj]")
        return targets


@contextmanager
def _both(first: AbstractContextManager[object], second: AbstractContextManager[object]) -> Iterator[None]:
    with first, second:
        yield


class ActiveAdapter:
    """While entered, the layers of one base use these adapters; may be entered again and again, and within another.

    Args:
        active: the list that all layers of the base read.
        names: what it shall hold.
    """

    def __init__(self, active: list[str], names: list[str]):
        self.active, self.names = active, list(names)
        self.before: list[list[str]] = []

    def __enter__(self) -> None:
        self.before.append(list(self.active))
        self.active[:] = self.names

    def __exit__(self, *_: object) -> None:
        self.active[:] = self.before.pop()


class AdaptedDenoiser(Denoiser):
    """A frozen base seen through an adapter of its own.

    As a module it holds the adapter alone, and the base's own parameters stay the base's: whoever trains, counts,
    casts or moves one of them leaves the other. Base and adapter may each be float32 or bfloat16; what they give is
    added in the finer of the two.

    Args:
        base: in eval mode, as all our networks; frozen from now on. Others may put adapters into it too.
        config: initialised with torch's global generator.

    Attributes:
        adapter: name of a layer, its dots as dashes → ``lora_A`` (rank, in) and ``lora_B`` (out, rank), both linear.

    Raises:
        UserError: a target that no linear layer's name ends with.
    """

    base: Denoiser

    def __init__(self, base: Denoiser, config: AdapterConfig):
        super().__init__()
        object.__setattr__(self, "base", base.requires_grad_(False))  # not registered: its parameters are not ours
        self.spec, self.config, self.columns = base.spec, config, base.columns
        self.capabilities = base.capabilities - {"adapters", "blocks", "compression"}
        check_targets(base, config)
        network = base.network
        self.name, self.active = insert_adapter(base, config)
        self.layers = {
            path: nn.ModuleDict({"lora_A": layer.lora_A[self.name], "lora_B": layer.lora_B[self.name]})
            for path, layer in lora_layers(network).items()
            if self.name in layer.lora_A
        }
        self.adapter = nn.ModuleDict({path.replace(".", "-"): layer for path, layer in self.layers.items()})
        self.float().to(base.device).requires_grad_(True).eval()

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """While entered, the base computes with this adapter, and its passes count as this denoiser's."""
        with ActiveAdapter(self.active, [self.name]), self.base.tally.lent_to(self.tally):
            yield

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """See `Denoiser.features`."""
        with self._adapted():
            return self.base.features(canvas, select)

    def head(self, features: Tensor) -> Tensor:
        """The base's, adapted where it is more than the output layer, as BERT's is; see `Denoiser.head`."""
        with ActiveAdapter(self.active, [self.name]):
            return self.base.head(features)

    def linear_head(self) -> LinearHead | None:
        """The base's, which no adapter sits on; see `Denoiser.linear_head`."""
        return self.base.linear_head()

    def time(self, canvas: Canvas) -> Tensor:
        """The base's; see `Denoiser.time`."""
        return self.base.time(canvas)

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """The base's, adapted; see `Denoiser.hidden_states`."""
        with self._adapted():
            return self.base.hidden_states(canvas, embeddings)

    def window_features(self, canvas: Canvas, window: Window) -> Tensor:
        """The base's, adapted; see `Denoiser.window_features`."""
        with self._adapted():
            return self.base.window_features(canvas, window)

    def checkpoint_activations(self, contexts: Contexts | None = None) -> None:
        """The base's, with the adapters in the repetition that were active in the pass itself.

        By the time of the backward pass another adapter may be active, or none.
        """
        active = self.active

        def adapted() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
            once, again = (nullcontext(), nullcontext()) if contexts is None else contexts()
            return once, _both(ActiveAdapter(active, active), again)

        self.base.checkpoint_activations(adapted)

    def compile_passes(self, compilation: Compilation) -> None:
        """The base's, for whichever adapter is active; see `Denoiser.compile_passes`."""
        self.base.compile_passes(compilation)

    @property
    def compilation(self) -> Compilation:
        """The base's; see `Denoiser.compilation`."""
        return self.base.compilation

    def timed(self) -> AdaptedDenoiser:
        """The base's, through the same adapter; see `Denoiser.timed`."""
        timed = copy.copy(self)
        object.__setattr__(timed, "base", self.base.timed())
        timed.spec = timed.base.spec
        return timed

    def token_embeddings(self) -> Tensor:
        """The base's: adapters sit on linear layers; see `Denoiser.token_embeddings`."""
        return self.base.token_embeddings()

    def commit_logits(self, features: Tensor, summaries: Tensor, where: Tensor) -> Tensor | None:
        """The base's: no adapter reaches it; see `Denoiser.commit_logits`."""
        return self.base.commit_logits(features, summaries, where)

    as_read, laid_out = Denoiser.as_read, Denoiser.laid_out  # float32 tensors, in PEFT's layout alone

    @property
    def repulsion(self) -> Tensor | None:
        """The base's; see `Denoiser.repulsion`."""
        return self.base.repulsion

    @property
    def device(self) -> torch.device:
        """Where the adapter is; see `Denoiser.device`."""
        return next(self.parameters()).device

    def twin(self) -> AdaptedDenoiser:
        """A frozen float32 copy on the same base, its parameters named as here."""
        twin = AdaptedDenoiser(self.base, self.config)
        twin.to(self.device).load_state_dict(self.state_dict())
        twin.requires_grad_(False)
        return twin

    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """Write the adapter in PEFT's own format; `peft.PeftModel.from_pretrained` puts it on the base's model."""
        if compression is not None:
            self.require("compression", f"compression {compression!r}")
        config = copy.copy(peft_configs(self.base.network)[self.name])
        config.inference_mode = True
        # a set, whose order differs from process to process
        config.target_modules = sorted(config.target_modules or ())
        config.save_pretrained(str(folder))
        save_file(self._file_tensors(), Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})

    def _file_tensors(self) -> dict[str, Tensor]:
        return {
            f"base_model.model.{path}.{name}": parameter.detach().cpu().float().contiguous()
            for path, layer in self.layers.items()
            for name, parameter in layer.named_parameters()
        }


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

    from students.low_rank import AdaptedLinear

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
