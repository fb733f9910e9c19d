"""What a denoiser can do beyond predicting, by name; without torch, so that a config can be checked against it."""

from __future__ import annotations

from typing import Literal

Capability = Literal[
    "absorbing process",  # its noise leaves masks, which are what samplers fill and objectives predict
    "weights",  # of its own, which can train and be what a student or a critic starts from
    "hidden states",  # `Denoiser.hidden_states`, for critics
    "embeddings",  # `Denoiser.token_embeddings`, and to read mixtures of them
    "blocks",  # `Denoiser.blocks`, of which some can train
    "adapters",  # LoRA layers can be put into its `network`
    "checkpointing",  # `Denoiser.checkpoint_activations`
    "sharding",  # spread over processes, by ZeRO 3
    "dispatch",  # layers spread over the devices of one process
    "planning",  # `fewstep plan` can make it from its config.json
    "compression",  # `Denoiser.save` with int8 or int4 weights
    "stock class",  # stock transformers loads it; an autoregressive one can be converted, and judge
    "exact law",  # knows the probability of every text, and draws texts exactly
]
