"""Causal language models of stock transformers, and denoisers that are one with another attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from teachers.capability import Capability
from teachers.families.family import OPTIONS, Checkpoint, Facts, Family, Reading, Traits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Denoiser
    from teachers.families.stock.denoiser import StockDenoiser

CAPABILITIES: frozenset[Capability] = frozenset(
    {
        "absorbing process",
        "weights",
        "hidden states",
        "embeddings",
        "blocks",
        "adapters",
        "cache",
        "checkpointing",
        "sharding",
        "dispatch",
        "planning",
        "compression",
        "stock class",
    }
)


class Stock(Family):
    """Whatever has a model_type: transformers says whether it knows it.

    Attributes:
        since: the version of transformers that has its stock class; None for any that is supported.
        key_names: pattern of a tensor's name in the files → in the stock class, as `from_pretrained` takes them.
    """

    name = "stock"
    title = "a causal language model of transformers"
    capabilities = CAPABILITIES
    options = frozenset(OPTIONS)
    runs_code = True
    since: ClassVar[str | None] = None
    key_names: ClassVar[Mapping[str, str]] = {}
    verified = "the model's own logits"

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return Facts("whatever it names", "said or set", "said or set", "said or set")

    def traits(self, checkpoint: Checkpoint, denoiser: Denoiser) -> Traits:
        """See `Family.traits`."""
        from teachers.families.stock.outline import traits

        return traits(checkpoint, denoiser)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return "model_type" in config

    def stock_config(self, config: Mapping[str, Any], place: str | Path) -> dict[str, Any]:
        """What stock transformers takes for a config.json, "fewstep" included, which says how the network is read.

        Args:
            config: the checkpoint's.
            place: where it stands, for messages.

        Raises:
            UserError: it lacks a field, or describes a network that no stock class computes.
        """
        return dict(config)

    def load(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> StockDenoiser:
        """A fewstep checkpoint as it was saved, or any causal language model with the options given.

        Options win over what the checkpoint says, and the mask token is that of the first that names one: the options,
        the checkpoint, the tokenizer. See `Family.load`.
        """
        from teachers.families.stock.loading import load_stock

        return load_stock(checkpoint, reading, tokenizer, options)

    def sketch(self, checkpoint: Checkpoint, blocks: int | None = None, **options: Any) -> StockDenoiser:
        """See `Family.sketch`."""
        from teachers.families.stock.loading import read_shape, untrained_denoiser

        return untrained_denoiser(read_shape(checkpoint), options, blocks)

    def network_logits(self, denoiser: Denoiser, tokens: Tensor) -> Tensor:
        """Of the network, before any shift; see `Family.network_logits`."""
        from teachers.families.stock.loading import stock_logits

        return stock_logits(denoiser.network, tokens)

    def written_logits(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None, tokens: Tensor
    ) -> Tensor:
        """As anybody's transformers computes them, no code of ours; see `Family.written_logits`."""
        from teachers.families.stock.loading import load_as_others, stock_logits

        return stock_logits(load_as_others(checkpoint.folder).to(tokens.device).eval(), tokens)
