"""RND1: Qwen3 with experts and full attention, which went on predicting the next position."""

from __future__ import annotations

from teachers.families.language.family import DECODER, EXPERTS, LanguageFamily, same
from teachers.families.language.sdar import EXPERT_FIELDS, EXPERT_LAYERS


class Rnd1(LanguageFamily):
    """Its config.json writes false for null; its own config class ignores every size in it."""

    name = "rnd1"
    title = "RND1"
    releases = ("radicalnumerics/RND1-Base-0910",)
    capabilities = EXPERTS
    model_types = ("rnd1",)
    stock_type = "qwen3_moe"
    fields = DECODER | same("head_dim") | EXPERT_FIELDS
    optional = same("tie_word_embeddings", "attention_bias") | EXPERT_LAYERS
    mask_token, mask_id = "<|mask|>", 151669
    shift = True
