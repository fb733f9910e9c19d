"""Exact sources, as `fewstep oracle` writes them; the mathematics is in teachers/oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teachers.capability import Capability
from teachers.families.family import Checkpoint, Facts, Family, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.oracle.denoiser import SourceDenoiser

MODEL_TYPE = "fewstep-oracle"
CAPABILITIES: frozenset[Capability] = frozenset({"exact law", "absorbing process"})


class Oracle(Family):
    """Tables of probabilities: no network, and every probability known."""

    name = "oracle"
    title = "an exact source"
    capabilities = CAPABILITIES
    verified = "law, by enumeration"

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return Facts("tables of probabilities", "the source's", "no", "all of a row")

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return config.get("model_type") == MODEL_TYPE

    def load(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> SourceDenoiser:
        """Tables in float64, whatever the reading; see `Family.load`."""
        from teachers.oracle.files import load_source
        from teachers.vocabulary import check_tokenizer

        source = load_source(checkpoint)
        if tokenizer is not None:
            check_tokenizer(tokenizer, source.spec.vocabulary, source.spec.mask_id, checkpoint.name)
        return source
