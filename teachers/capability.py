"""What a denoiser can do beyond predicting, by name; without torch, so that a config can be checked against it."""

from __future__ import annotations

from typing import Literal, get_args

Capability = Literal[
    "absorbing process",  # its noise leaves masks, which are what samplers fill and objectives predict
    "weights",  # of its own, which can train and be what a student or a critic starts from
    "hidden states",  # `Denoiser.hidden_states`, for critics
    "embeddings",  # `Denoiser.token_embeddings`, and to read mixtures of them
    "blocks",  # `Denoiser.blocks`, of which some can train
    "adapters",  # LoRA layers can be put into its `network`
    "cache",  # `Denoiser.window_features`: keys and values are kept from pass to pass
    "checkpointing",  # `Denoiser.checkpoint_activations`
    "sharding",  # spread over processes, by ZeRO 3
    "dispatch",  # layers spread over the devices of one process
    "planning",  # `fewstep plan` can make it from its config.json
    "compression",  # `Denoiser.save` with int8 or int4 weights
    "stock class",  # stock transformers loads it; an autoregressive one can be converted, and judge
    "exact law",  # knows the probability of every text, and draws texts exactly
]

WORDS: dict[Capability, str] = {
    "absorbing process": "distillation",
    "weights": "students of its shape",
    "hidden states": "discriminators",
    "embeddings": "critics that read mixtures",
    "blocks": "critics that train a few blocks",
    "adapters": "adapters",
    "cache": "a cache of keys and values",
    "checkpointing": "gradient checkpointing",
    "sharding": "ZeRO 3",
    "dispatch": "placement dispatched",
    "planning": "fewstep plan",
    "compression": "int8 and int4",
}
"""What a person calls it; the others are no matter of choice."""


def in_words(capabilities: frozenset[Capability]) -> tuple[list[str], list[str]]:
    """What can be done with them, and what can not."""
    can = [WORDS[name] for name in get_args(Capability) if name in WORDS and name in capabilities]
    if "weights" not in capabilities:
        return can, ["whatever needs a network"]
    return can, [word for word in WORDS.values() if word not in can]
