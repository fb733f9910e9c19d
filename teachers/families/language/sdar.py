"""SDAR (Cheng et al. 2510.06303), dense and with experts: Qwen3 with attention in blocks."""

from __future__ import annotations

from teachers.families.language.family import DECODER, EXPERTS, LanguageFamily, same

EXPERT_FIELDS = same("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
EXPERT_LAYERS = same("decoder_sparse_step", "mlp_only_layers")


class Sdar(LanguageFamily):
    """The dense ones."""

    name = "sdar"
    title = "SDAR"
    releases = ("JetLM/SDAR-1.7B-Chat", "JetLM/SDAR-4B-Chat", "JetLM/SDAR-8B-Chat")
    served = ("SGLang", "LMDeploy")
    options = LanguageFamily.options | {"block_size", "attention"}
    model_types = ("sdar",)
    stock_type = "qwen3"
    fields = DECODER | same("head_dim")
    optional = same("tie_word_embeddings", "attention_bias")
    mask_token, mask_id = "<|MASK|>", 151669
    attention, block_size, block_key, block_suffix = "block", 4, "block_size", "-b"


class SdarMoe(Sdar):
    """Experts' weights are the largest probabilities over their sum, if the config says so."""

    name = "sdar-moe"
    title = "SDAR with experts"
    releases = ("JetLM/SDAR-30B-A3B-Chat", "JetLM/SDAR-30B-A3B-Sci")
    capabilities = EXPERTS
    model_types = ("sdar_moe",)
    stock_type = "qwen3_moe"
    fields = DECODER | same("head_dim") | EXPERT_FIELDS
    optional = same("tie_word_embeddings", "attention_bias") | EXPERT_LAYERS
