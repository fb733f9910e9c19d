"""Dream (Ye et al. 2508.15487), and what is of its shapes: Dream-Coder and DiffuCoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teachers.families.language.family import DECODER, LanguageFamily

BLOCK_MODEL = "DreamForCausalLM"


def _is_block_model(config: Mapping[str, Any]) -> bool:
    architectures = config.get("architectures")
    return isinstance(architectures, list) and BLOCK_MODEL in architectures


class Dream(LanguageFamily):
    """Qwen2 with full attention, which went on predicting the next position."""

    name = "dream"
    title = "Dream"
    releases = (
        "Dream-org/Dream-v0-Base-7B",
        "Dream-org/Dream-v0-Instruct-7B",
        "Dream-org/Dream-Coder-v0-Instruct-7B",
        "apple/DiffuCoder-7B-Base",
    )
    model_types = ("Dream",)
    stock_type = "qwen2"
    fields = DECODER
    mask_token, mask_id = "<|mask|>", 151666
    shift = True

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return super().recognises(config) and not _is_block_model(config)


class DreamBlock(LanguageFamily):
    """A later one of the same model_type: attention in blocks, and no shift."""

    name = "dream-block"
    title = "a block model of Dream"
    verified = "nothing: no release was seen"
    options = LanguageFamily.options | {"block_size", "attention"}
    model_types = ("Dream",)
    stock_type = "qwen2"
    fields = DECODER
    mask_token, mask_id = "<|mask|>", 151669
    attention, block_size, block_key = "block", 32, "block_size"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return super().recognises(config) and _is_block_model(config)
