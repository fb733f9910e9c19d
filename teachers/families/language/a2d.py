"""A2D, what dllm makes of an autoregressive model: Qwen's or Llama's own network, its attention full or in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from teachers.families.family import Facts
from teachers.families.language.family import DECODER, LanguageFamily, same

PREFIX = "a2d-"


class A2d(LanguageFamily):
    """Nothing in a checkpoint tells whether it was trained in blocks: full attention, unless it is told."""

    name = "a2d"
    title = "an A2D checkpoint"
    releases = (
        "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",
        "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",
        "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1",
    )
    options = LanguageFamily.options | {"block_size", "attention"}
    model_types = ("a2d-qwen3", "a2d-qwen2", "a2d-llama")
    stock_type = "qwen3"
    fields = DECODER
    optional = same("tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim")
    mask_token, mask_id = "<|mask|>", 151669
    block_size = 32

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return replace(super().facts(), network="qwen3, qwen2", attention="full, or blocks that you set")

    def derived(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The stock class: the name after ``a2d-``."""
        return {"model_type": str(config.get("model_type")).removeprefix(PREFIX)}

    def released_mask(self, config: Mapping[str, Any], vocabulary: int) -> int | None:
        """On others than Qwen3 it is wherever the base model's tokenizer has room."""
        return super().released_mask(config, vocabulary) if config.get("model_type") == "a2d-qwen3" else None
