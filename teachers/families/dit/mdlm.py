"""MDLM (Sahoo et al. 2406.07524) as it is released: config.json with the sizes, and a ``backbone.`` prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teachers.capability import Capability
from teachers.errors import UserError
from teachers.families.family import Checkpoint, Family, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.families.dit.denoiser import DitDenoiser

GPT2 = "openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"
"""The tokenizer that the code of these releases asks for; they hold none."""
CAPABILITIES: frozenset[Capability] = frozenset(
    {"weights", "hidden states", "embeddings", "blocks", "checkpointing", "sharding", "dispatch"}
)


class Mdlm(Family):
    """Checkpoints of model_type "mdlm"."""

    name = "mdlm"
    title = "an MDLM checkpoint"
    capabilities = CAPABILITIES

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return config.get("model_type") == "mdlm"

    def load(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> DitDenoiser:
        """See `Family.load`."""
        from teachers.families.dit.denoiser import load_dit
        from teachers.families.dit.network import Shape

        keys = ("vocab_size", "hidden_dim", "cond_dim", "n_blocks", "n_heads")
        shape = Shape(*(whole_number(checkpoint, key) for key in keys))
        length, time_conditioned = whole_number(checkpoint, "model_length"), checkpoint.config.get("time_conditioning")
        return load_dit(checkpoint, reading, tokenizer, shape, "backbone.", length, time_conditioned is True)

    def tokenizer(self, checkpoint: Checkpoint) -> str:
        """The folder's own, or GPT-2's."""
        own = any(checkpoint.folder.glob("tokenizer*")) or any(checkpoint.folder.glob("vocab*"))
        return str(checkpoint.folder) if own else GPT2


def whole_number(checkpoint: Checkpoint, key: str) -> int:
    """A size that config.json must say.

    Raises:
        UserError: it does not.
    """
    value = checkpoint.config.get(key)
    if type(value) is not int or value < 1:
        raise UserError(
            f"{checkpoint.folder / 'config.json'} has {key} {value!r}; it must be a whole number of at least 1, as the "
            "release has it"
        )
    return value
