"""What the families on the diffusion transformer have in common, and what each says of its checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teachers.capability import Capability
from teachers.errors import UserError
from teachers.families.dit.shape import Shape
from teachers.families.family import GPT2, Checkpoint, Facts, Family, Reading, Traits
from teachers.headers import read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Attention, Denoiser
    from teachers.families.dit.denoiser import DitDenoiser

NETWORK: frozenset[Capability] = frozenset(
    {"weights", "hidden states", "embeddings", "blocks", "adapters", "checkpointing", "sharding", "dispatch"}
)
MASKS: frozenset[Capability] = frozenset({"absorbing process", "cache", "planning"})
CAPABILITIES = NETWORK | MASKS
EMBEDDING = "vocab_embed.embedding"


@dataclass(frozen=True)
class Layout:
    """What a checkpoint says of its network, before a weight is read.

    Attributes:
        shape: its sizes.
        trained_length: tokens of the rows it was trained on.
        prefix: of every parameter's name.
        others: tensors that are no parameters of the network, kept as they are.
        attention, block_size, time_conditioned: see `teachers.denoiser.DenoiserSpec`.
        time_optional: it can be read with and without a time, see `teachers.denoiser.Denoiser.timed`.
    """

    shape: Shape
    trained_length: int
    prefix: str = ""
    others: frozenset[str] = frozenset()
    attention: Attention = "full"
    block_size: int | None = None
    time_conditioned: bool = False
    time_optional: bool = False


class DitFamily(Family):
    """A family whose network is `teachers.families.dit.network.DiffusionTransformer`."""

    capabilities = CAPABILITIES
    options = frozenset({"mask_id"})
    lent_tokenizer = GPT2
    verified = "law"

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return Facts("diffusion transformer", "the last entry, 50257", "no", "full")

    def traits(self, checkpoint: Checkpoint, denoiser: Denoiser) -> Traits:
        """See `Family.traits`."""
        return Traits("DiffusionTransformer", "default, frequencies of the checkpoint")

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """By a model_type that is the family's name, as half of the releases have; see `Family.recognises`."""
        return config.get("model_type") == self.name

    @abstractmethod
    def layout(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Layout:
        """What the checkpoint is, read from its config.json and the headers of its weights.

        Args:
            settings: of `options`, see `written_settings`.

        Raises:
            UserError: its config.json lacks what the release has, or asks for what is not computed here.
        """

    def load(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> DitDenoiser:
        """See `Family.load`."""
        from teachers.families.dit.loading import load_dit

        settings = written_settings(checkpoint) | options
        return load_dit(checkpoint, reading, tokenizer, self.layout(checkpoint, settings), settings)

    def sketch(self, checkpoint: Checkpoint, blocks: int | None = None, **options: Any) -> DitDenoiser:
        """See `Family.sketch`; where config.json does not say all sizes, the headers of the weights do."""
        from teachers.families.dit.loading import sketch_dit

        settings = written_settings(checkpoint) | options
        return sketch_dit(checkpoint, self.layout(checkpoint, settings), settings, blocks)


def written_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What an export of ours says of its checkpoint beyond what its release would."""
    written = checkpoint.config.get("fewstep")
    written = written if isinstance(written, Mapping) else {}
    return {key: written[key] for key in checkpoint.family.options if written.get(key) is not None}


def entry(checkpoint: Checkpoint, key: str) -> Any:
    """What config.json has under a dotted key; None where it has nothing."""
    value: Any = checkpoint.config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def whole_number(checkpoint: Checkpoint, key: str) -> int:
    """A size that config.json must say, under a dotted key.

    Raises:
        UserError: it does not.
    """
    value = entry(checkpoint, key)
    if type(value) is not int or value < 1:
        raise UserError(
            f"{checkpoint.folder / 'config.json'} has {key} {value!r}; it must be a whole number of at least 1, as the "
            "release has it"
        )
    return value


def flag(checkpoint: Checkpoint, key: str) -> bool:
    """A choice that config.json makes under a dotted key; False where it says nothing of it.

    Raises:
        UserError: it is neither true nor false.
    """
    value = entry(checkpoint, key)
    if value is not None and type(value) is not bool:
        raise UserError(
            f"{checkpoint.folder / 'config.json'} has {key} {value!r}; it must be true or false, as the release has it"
        )
    return value is True


def refuse_flag(checkpoint: Checkpoint, key: str, why: str) -> None:
    """Refuse a checkpoint whose config.json sets a flag.

    Args:
        why: what it would mean, for the message.

    Raises:
        UserError: it does.
    """
    if flag(checkpoint, key):
        raise UserError(
            f"{checkpoint.folder / 'config.json'} has {key} true: {why}; give a checkpoint without, as the family's "
            "released ones are"
        )


def refuse_unless(checkpoint: Checkpoint, key: str, computed: tuple[str, ...]) -> None:
    """Refuse a checkpoint whose config.json names under ``key`` what is not ``computed`` here.

    Raises:
        UserError: it does.
    """
    value = entry(checkpoint, key)
    if value not in computed:
        raise UserError(
            f"{checkpoint.folder / 'config.json'} has {key} {value!r}, which is not computed here; it must be "
            f"{' or '.join(repr(name) for name in computed)}, as the released models of the family have it"
        )


def shapes_of(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of the checkpoint, from its headers.

    Raises:
        UserError: see `teachers.headers.read_headers`.
    """
    return read_headers(checkpoint.folder, checkpoint.config).shapes


def prefix_of(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What stands before the names of the network's parameters, told from the embedding's.

    Raises:
        UserError: there is no embedding, or several.
    """
    found = [name.removesuffix(EMBEDDING) for name in shapes if name.endswith(EMBEDDING)]
    if len(found) != 1:
        raise UserError(
            f"model {checkpoint.name!r} has {len(found)} tensors named {EMBEDDING}; its weights must have one, as the "
            "release has it"
        )
    return found[0]
