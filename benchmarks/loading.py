"""What reading a released checkpoint costs: `python -m benchmarks.loading [FOLDER]`, a table on the terminal.

Two checkpoints of random bfloat16 weights are written into FOLDER, a temporary one by default: LLaDA-8B's proportions
with fewer blocks, and LLaDA2-mini's with fewer and narrower ones but as many experts. Each is read in a process of its
own through its family, and LLaDA's also under stock names by the stock loader, which renames nothing. Then the full
sizes of both releases are made as empty weights, and every key of their files is mapped.
"""

from __future__ import annotations

SHARD = 1e9
"""Bytes of a weights file."""
Shapes = dict[str, tuple[int, ...]]

LLADA = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32,
    "n_layers": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,
    "max_sequence_length": 4096, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "mask_token_id": 126336,
    "eos_token_id": 126081, "pad_token_id": 126081, "weight_tying": False, "include_bias": False,
    "include_qkv_bias": False, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms", "rope": True,
    "alibi": False, "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False,
}  # fmt: skip
LLADA2 = {
    "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "hidden_size": 2048, "intermediate_size": 5120,
    "moe_intermediate_size": 512, "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8,
    "topk_group": 4, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "score_function": "sigmoid", "vocab_size": 157184, "max_position_embeddings": 32768, "rms_norm_eps": 1e-06,
    "rope_theta": 600000, "rope_scaling": None, "partial_rotary_factor": 0.5, "use_qk_norm": True,
    "use_qkv_bias": False, "use_bias": False, "hidden_act": "silu", "tie_word_embeddings": False, "pad_token_id": 156892,
}  # fmt: skip
FEWER = {
    "LLaDA": LLADA | {"n_layers": 2},
    "LLaDA2": LLADA2 | {"num_hidden_layers": 3, "vocab_size": 40960},
}
"""What is written: 2 GB and more."""
