"""One frozen base, many networks: the teacher is the base itself, student and critic are adapters on it.

No adapter is active, except while an `AdaptedDenoiser` computes: so the base always gives the teacher's own output,
whoever was called before it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from students.adapters.config import AdapterConfig
from students.adapters.layers import check_targets, insert_adapter, lora_layers, peft_configs
from teachers.cache import Window
from teachers.canvas import Canvas
from teachers.compilation import Compilation
from teachers.denoiser import Compression, Contexts, Denoiser
from teachers.ops.head import LinearHead

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names


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

    def use_flex_attention(self) -> None:
        """The base's; see `Denoiser.use_flex_attention`."""
        self.base.use_flex_attention()

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
