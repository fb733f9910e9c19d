"""What a family of checkpoints is: how it is known, what its denoisers can do, and who reads and writes it.

Nothing here needs torch: what a config asks of a model is checked against the model's config.json alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from teachers.capability import Capability
from teachers.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Denoiser

GPT2 = "openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"
OPTIONS = ("mask_id", "shift", "attention", "block_size", "time_conditioned")
"""What a config may say of a checkpoint that does not say it itself, see `teachers.denoiser.DenoiserSpec`."""


HELD = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
"""A precision as safetensors writes it."""


@dataclass(frozen=True)
class Spread:
    """What the layers of a network are spread over as they are read: the devices of one process, and its disk.

    Attributes:
        memory: device → how much of it, such as ``{0: "20GB", "cpu": "50GB"}``; None for all that is free.
        folder: for layers that fit on no device; made when needed.
    """

    memory: Mapping[Any, Any] | None
    folder: Path


@dataclass(frozen=True)
class Partition:
    """What a network is partitioned over as it is read: the processes, which have joined DeepSpeed for it.

    Attributes:
        config: what DeepSpeed is told, of ZeRO 3.
    """

    config: Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """How the weights of a checkpoint are read.

    Attributes:
        precision: of the parameters, from the file on: no copy in another one is made. Buffers keep their type.
        spread: where it need not be whole; a family that knows no way reads it whole. None for the host's memory.
        empty: no weight is read: a network of the checkpoint's shapes on torch's meta device, all checks but those of
            the weights made.
    """

    precision: torch.dtype
    spread: Spread | Partition | None = None
    empty: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A model's name, resolved once: what everything that reads it is given.

    Attributes:
        name: as the person wrote it.
        folder: where its files are.
        config: its config.json.
        family: whose format it is.
        trusted: whether Python that comes with it may run.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    family: Family
    trusted: bool = False

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        precision: torch.dtype | None = None,
        spread: Spread | Partition | None = None,
        **options: Any,
    ) -> Denoiser:
        """The denoiser; see `Family.load`.

        Args:
            precision: of its parameters; float32 by default.
            spread: see `Reading`.
            options: of `OPTIONS`; None for what is not set.

        Raises:
            UserError: it can not be read, or an option that its family does not take.
        """
        import torch

        options = {key: value for key, value in options.items() if value is not None}
        self.check_options(options)
        return self.family.load(self, Reading(precision or torch.float32, spread), tokenizer, **options)

    def outline(self, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> Denoiser:
        """The denoiser without its weights, on torch's meta device; what is wrong is told as by `load`.

        Args:
            options: as for `load`.

        Raises:
            UserError: see `load`.
        """
        import torch

        options = {key: value for key, value in options.items() if value is not None}
        self.check_options(options)
        return self.family.load(self, Reading(torch.float32, empty=True), tokenizer, **options)

    def lossless(self, precision: torch.dtype) -> torch.dtype:
        """``precision`` where the files hold it, else float32: for what is computed before weights are cast."""
        import torch

        from teachers.headers import read_headers

        if precision == torch.float32 or "weights" not in self.family.capabilities:
            return torch.float32
        tensors = read_headers(self.folder, self.config).tensors.values()
        held = {tensor.dtype for tensor in tensors if tensor.dtype[0] in "BF" and tensor.dtype != "BOOL"}
        return precision if held == {HELD[str(precision)]} else torch.float32

    @property
    def holds_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside the weights."""
        return any(self.folder.glob("tokenizer*")) or any(self.folder.glob("vocab*"))

    def check_options(self, options: Mapping[str, Any], section: str = "") -> None:
        """Refuse to be told what the checkpoint says itself.

        Args:
            options: of `OPTIONS`; None for what is not set.
            section: of the config that they stand in, for the message.

        Raises:
            UserError: an option is set that the family does not take.
        """
        for key, value in options.items():
            if value is not None and key not in self.family.options:
                raise UserError(
                    f"{section}{key} is set, but model {self.name!r} is {self.family.title}, which says that "
                    "itself; leave it out"
                )

    def require(self, needs: Mapping[Capability, str]) -> None:
        """Refuse what the family can not do, before anything is loaded.

        Args:
            needs: capability → which setting asks for it, and what to set instead.

        Raises:
            UserError: one is missing.
        """
        for capability, setting in needs.items():
            if capability not in self.family.capabilities:
                raise UserError(f"model {self.name!r} is {self.family.title}, without {capability}, but {setting}")


@dataclass(frozen=True)
class Facts:
    """What a family's checkpoints are like, in words for a table.

    Attributes:
        network: what computes them.
        mask_id, shift, attention: see `teachers.denoiser.DenoiserSpec`.
    """

    network: str
    mask_id: str
    shift: str
    attention: str


@dataclass(frozen=True)
class Traits:
    """What is to be said of a checkpoint's network besides its `teachers.denoiser.DenoiserSpec`.

    Attributes:
        network: the class that computes it.
        rotary: how positions are turned into its heads; None where they are not.
        sliding_window: tokens that a layer sees; None for all.
        tied: whether the head is the embedding.
        unread: names of tensors in the files that the network does not read.
    """

    network: str
    rotary: str | None = None
    sliding_window: int | None = None
    tied: bool = False
    unread: tuple[str, ...] = ()


class Family(ABC):
    """A kind of checkpoints that one piece of code reads and writes.

    Attributes:
        name: short, for lists.
        title: such as "an exact Markov source", for error lines.
        capabilities: what its denoisers can do.
        options: those of `OPTIONS` that its checkpoints leave open.
        left_out: a sentence on each thing that a release holds and an export does not, for the model card.
        runs_code: whether Python that comes with a checkpoint can be what computes it.
        lent_tokenizer: the hub name of the one that the release's own code asks for, where a checkpoint has none.
        releases: repositories that are known to be of the family.
        served: engines that serve its format.
        verified: what of it has been compared with its own code: "law", log-probabilities on its golden canvases, and
            "traces", texts of its own sampler, token by token.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]]
    options: ClassVar[frozenset[str]] = frozenset()
    left_out: ClassVar[tuple[str, ...]] = ()
    runs_code: ClassVar[bool] = False
    lent_tokenizer: ClassVar[str | None] = None
    releases: ClassVar[tuple[str, ...]] = ()
    served: ClassVar[tuple[str, ...]] = ()
    verified: ClassVar[str]

    @abstractmethod
    def facts(self) -> Facts:
        """What its checkpoints are like, for a table."""

    def traits(self, checkpoint: Checkpoint, denoiser: Denoiser) -> Traits:
        """What is to be said of a checkpoint's network.

        Args:
            denoiser: of `Checkpoint.outline`.
        """
        return Traits(type(denoiser).__name__)

    @abstractmethod
    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this config.json is one of the family's."""

    def recognises_files(self, config: Mapping[str, Any], name: str, folder: Path) -> bool:
        """The same, where config.json may say nothing of it, but the model's name or its tensors do."""
        return self.recognises(config)

    @abstractmethod
    def load(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> Denoiser:
        """The denoiser of a checkpoint; its `save` writes the same format.

        Args:
            reading: in which precision, and to where.
            tokenizer: which tokens mean what, where the checkpoint does not say.
            options: of `options`.

        Raises:
            UserError: files that are not whole, damaged or of another kind; a tokenizer of another model.
        """

    def sketch(self, checkpoint: Checkpoint, blocks: int | None = None, **options: Any) -> Denoiser:
        """A denoiser of the sizes in config.json alone, without weights, on torch's meta device; capability "planning".

        Args:
            blocks: how many transformer blocks; by default all.
            options: of `options`.

        Raises:
            UserError: config.json makes no network.
        """
        raise AssertionError(f"{self.title} declares planning and has no sketch")

    def tokenizer(self, checkpoint: Checkpoint) -> str:
        """The name of the tokenizer that belongs to a checkpoint: a folder, or a hub name with its commit."""
        lent = self.lent_tokenizer
        return str(checkpoint.folder) if checkpoint.holds_tokenizer or lent is None else lent

    def discriminator(self, checkpoint: Checkpoint, **options: Any) -> tuple[Denoiser, nn.Module] | None:
        """What was released beside a checkpoint to guide its sampling; None where nothing was.

        Args:
            options: as of `load`.

        Returns:
            A network, and what makes one logit a token (B, L, 1) of its `Denoiser.hidden_states`; both frozen.

        Raises:
            UserError: it is not whole.
        """
        return None

    def network_logits(self, denoiser: Denoiser, tokens: Tensor) -> Tensor:
        """(B, L, V) float64 of what a denoiser computes, for comparison with `written_logits`.

        Up to a constant a position; the columns of what is no text mean nothing.

        Args:
            tokens: (B, L), on the denoiser's device.
        """
        import torch

        from teachers.canvas import Canvas

        time = torch.full((len(tokens),), 0.5, device=tokens.device) if denoiser.spec.time_conditioned else None
        with torch.no_grad():
            return denoiser.log_probs(Canvas.of(tokens, denoiser.spec.mask_id, time=time)).double()

    def written_logits(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None, tokens: Tensor
    ) -> Tensor:
        """The same of a checkpoint that was written, as its readers would; everything is loaded anew."""
        return self.network_logits(checkpoint.load(tokenizer).to(tokens.device), tokens)


def unknown_family(config: Mapping[str, Any], name: str, known: list[str]) -> UserError:
    """One line on a checkpoint that nobody reads: what was found, and what is nearest to it.

    Args:
        config: its config.json.
        name: the model's.
        known: names of families, and what their checkpoints call themselves.
    """
    kind, classes = config.get("model_type"), config.get("architectures")
    found = f"model_type {kind!r:.60}, architectures {classes!r:.100}"
    code = (
        ""
        if "auto_map" not in config
        else ("; or read its own model code, and if you trust it set trust_remote_code to the model's name")
    )
    if kind is None and classes is None:
        found = f"no model_type, but {', '.join(config):.100}"
    return UserError(
        f"the config.json of model {name!r} has {found}, of no family that is read here{nearest(str(kind), known)}; "
        f"correct model_type, or set teacher.family to one of those that fewstep teachers lists{code}"
    )
