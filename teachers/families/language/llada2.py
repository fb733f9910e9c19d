"""LLaDA2.0 and 2.1 (2512.15745): experts in groups, attention in blocks; transformers has the network as Sarvam's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from teachers.errors import UserError
from teachers.families.language.family import DECODER, EXPERTS, OFF, Allowed, LanguageFamily, Names, same
from teachers.families.rules import refusal

MERGED = "llada2_moe_veomni"


class Llada2(LanguageFamily):
    """Both versions are one network; they are sampled differently."""

    name = "llada2"
    title = "LLaDA2"
    releases = (
        "inclusionAI/LLaDA2.0-mini",
        "inclusionAI/LLaDA2.0-flash",
        "inclusionAI/LLaDA2.1-mini",
        "inclusionAI/LLaDA2.1-flash",
    )
    served = ("SGLang", "dInfer")
    capabilities = EXPERTS
    options = LanguageFamily.options | {"block_size", "attention"}
    model_types = ("llada2_moe", MERGED)
    stock_type, since = "sarvam_moe", "5.24"
    fields: ClassVar[Names] = {
        **DECODER,
        **same("num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace"),
        **same("n_group", "topk_group", "routed_scaling_factor"),
        "n_routed_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
    }
    optional: ClassVar[Names] = {**same("tie_word_embeddings", "head_dim"), "attention_bias": "use_qkv_bias"}
    # the norms of queries and keys are in the files and used, and expert weights are always taken over their sum,
    # whatever config.json says
    fixed: ClassVar[Mapping[str, Any]] = {"use_qk_norm": True, "norm_topk_prob": True}
    allowed: ClassVar[Allowed] = {"use_bias": OFF, "norm_head": OFF, "norm_softmax": OFF, "use_rmsnorm": (True,)}
    mask_token, mask_id = "<|mask|>", 156895
    attention, block_size, block_key = "block", 32, "block_size"

    def check_config(self, config: Mapping[str, Any], place: str | Path) -> None:
        """See `LanguageFamily.check_config`."""
        if config.get("model_type") == MERGED:
            raise UserError(
                f"{place} is of model_type {MERGED}, whose experts are merged into one tensor for training; split them "
                "with the script that comes with that training code, which writes model_type llada2_moe"
            )
        super().check_config(config, place)
        experts, groups, kept = (config[key] for key in ("num_experts", "n_group", "topk_group"))
        if groups < 1 or experts % groups:
            raise refusal(place, "n_group", groups, f"it must divide the {experts} experts")
        if not 1 <= kept <= groups:
            raise refusal(place, "topk_group", kept, f"there are {groups} groups")

    def derived(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The width of a head, which a config may leave out."""
        return {"head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]}
