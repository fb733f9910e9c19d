"""LLaDA (Nie et al. 2502.09992) and LLaDA-MoE: both say model_type "llada", but name their sizes differently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from teachers.errors import UserError
from teachers.families.language.family import DECODER, EXPERTS, OFF, Allowed, LanguageFamily, Names, same
from teachers.families.rules import refusal

BLOCK = r"^model\.transformer\.blocks\.(\d+)\."


class Llada(LanguageFamily):
    """The dense ones."""

    name = "llada"
    title = "LLaDA"
    releases = ("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5")
    served = ("dInfer",)
    model_types = ("llada",)
    stock_type = "llama"
    key_names: ClassVar[Names] = {
        r"^model\.transformer\.wte\.": "model.embed_tokens.",
        r"^model\.transformer\.ln_f\.": "model.norm.",
        r"^model\.transformer\.ff_out\.": "lm_head.",
        BLOCK + r"attn_norm\.": r"model.layers.\1.input_layernorm.",
        BLOCK + r"ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
        BLOCK + r"q_proj\.": r"model.layers.\1.self_attn.q_proj.",
        BLOCK + r"k_proj\.": r"model.layers.\1.self_attn.k_proj.",
        BLOCK + r"v_proj\.": r"model.layers.\1.self_attn.v_proj.",
        BLOCK + r"attn_out\.": r"model.layers.\1.self_attn.o_proj.",
        BLOCK + r"ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
        BLOCK + r"up_proj\.": r"model.layers.\1.mlp.up_proj.",
        BLOCK + r"ff_out\.": r"model.layers.\1.mlp.down_proj.",
    }
    fields: ClassVar[Names] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_sequence_length",
        "hidden_act": "activation_type",
        "rms_norm_eps": "rms_norm_eps",
        "vocab_size": "vocab_size",
    }
    optional: ClassVar[Names] = {"num_key_value_heads": "n_kv_heads", "tie_word_embeddings": "weight_tying"}
    allowed: ClassVar[Allowed] = {
        "activation_type": ("silu",),
        "alibi": OFF,
        "attention_layer_norm": OFF,
        "bias_for_layer_norm": OFF,
        "block_group_size": (None, 1),
        "block_type": ("llama",),
        "clip_qkv": (None,),
        "include_bias": OFF,
        "include_qkv_bias": OFF,
        "input_emb_norm": OFF,
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "rope": (True,),
        "rope_scaling": OFF,
        "scale_logits": OFF,
    }
    mask_token, mask_id = "<|mdm_mask|>", 126336

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """By the name of a size, which outlives tools that rewrite the names of classes."""
        return super().recognises(config) and "d_model" in config

    def derived(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Sizes that may be left to others: rows, heads and the width of the MLP."""
        heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else config["n_heads"])
        return {
            "vocab_size": config.get("embedding_size") or config["vocab_size"],
            "num_key_value_heads": heads,
            "intermediate_size": config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
        }

    def check_config(self, config: Mapping[str, Any], place: str | Path) -> None:
        """See `LanguageFamily.check_config`."""
        super().check_config(config, place)
        if config.get("mlp_hidden_size") is None and not isinstance(config.get("mlp_ratio"), int):
            raise UserError(f"{place} has neither mlp_hidden_size nor mlp_ratio; put the release's config.json back")


class LladaMoe(LanguageFamily):
    """Experts without shared ones; their weights are the largest probabilities as they are, not over their sum."""

    name = "llada-moe"
    title = "LLaDA-MoE"
    capabilities = EXPERTS
    releases = ("inclusionAI/LLaDA-MoE-7B-A1B-Base", "inclusionAI/LLaDA-MoE-7B-A1B-Instruct")
    served = ("dInfer",)
    model_types = ("llada", "lladamoe")
    stock_type = "qwen3_moe"
    fields: ClassVar[Names] = {
        **DECODER,
        **same("num_experts", "num_experts_per_tok"),
        "intermediate_size": "dense_intermediate_size",
        "moe_intermediate_size": "expert_intermediate_size",
    }
    optional = same("tie_word_embeddings", "attention_bias")
    fixed: ClassVar[Mapping[str, Any]] = {"norm_topk_prob": False, "decoder_sparse_step": 1}
    allowed: ClassVar[Allowed] = {
        "clip_qkv": (None,),
        "moe_router_enable_expert_bias": OFF,
        "partial_rotary_factor": (None, 1),
        "qk_layernorm": (True,),
        "shared_expert_intermediate_size": (None, 0),
    }
    mask_token, mask_id = "<|mask|>", 156895

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Llada.recognises`."""
        return super().recognises(config) and "d_model" not in config

    def derived(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The width of a head, and which layers have no experts."""
        dense = [layer for layer, kind in enumerate(config.get("moe_layer_freq") or []) if kind == 0]
        return {"head_dim": config["hidden_size"] // config["num_attention_heads"], "mlp_only_layers": dense}

    def check_config(self, config: Mapping[str, Any], place: str | Path) -> None:
        """See `LanguageFamily.check_config`."""
        super().check_config(config, place)
        kinds, layers = config.get("moe_layer_freq"), config["num_hidden_layers"]
        if kinds is not None and not (isinstance(kinds, list) and len(kinds) == layers and set(kinds) <= {0, 1}):
            raise refusal(place, "moe_layer_freq", kinds, f"it must be 0 or 1 for each of {layers} layers, or null")
