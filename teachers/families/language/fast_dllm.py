"""Fast-dLLM v2 (Wu et al. 2509.26328): Qwen2.5 with attention in blocks, which went on predicting the next position."""

from __future__ import annotations

from teachers.families.language.family import DECODER, LanguageFamily


class FastDllm(LanguageFamily):
    """Its own network ignores attention masks; here padding is hidden."""

    name = "fast-dllm-v2"
    title = "Fast-dLLM v2"
    releases = ("Efficient-Large-Model/Fast_dLLM_v2_1.5B", "Efficient-Large-Model/Fast_dLLM_v2_7B")
    options = LanguageFamily.options | {"block_size", "attention"}
    model_types = ("Fast_dLLM_Qwen",)
    stock_type = "qwen2"
    fields = DECODER
    mask_token, mask_id = "|<MASK>|", 151665
    shift = True
    attention, block_size, block_key = "block", 32, "bd_size"
