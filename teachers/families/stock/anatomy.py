"""Where stock models keep what a denoiser needs of them, each by its own names: head, blocks and positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")
"""What configs call the number of positions: most, GPT-2's, MPT's, LLaDA's, Whisper's."""


WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kind of layer that does not look at a whole row → the field that says how many tokens it looks at."""


class KnownStates:
    """Stands where a model's `forward` asks its base model, and answers with hidden states that are known already.

    Args:
        hidden: (B, L, H), the base model's ``last_hidden_state``.
    """

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __call__(self, *_: Any, **__: Any) -> KnownStates:
        """What a base model returns."""
        return self

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> Any:
        """Some classes ask the decoder within their base model; there is no other output."""
        return self if name == "decoder" else None


@contextmanager
def _known(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Within, the model's base model is not computed."""
    vars(model)[model.base_model_prefix] = KnownStates(hidden)  # hides the module, and leaves it where it is
    try:
        yield
    finally:
        del vars(model)[model.base_model_prefix]


def window_of(config: PretrainedConfig) -> tuple[str, int] | None:
    """The field of a model's config that says how many tokens some of its layers look at, and how many they are."""
    fields = config.to_dict()
    for kind, field in WINDOWS.items():
        if kind in (fields.get("layer_types") or [kind]) and type(fields.get(field)) is int:
            return field, fields[field]
    return None


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's own logits for last hidden states: whatever its ``forward`` does after its base model.

    Besides the output embedding, that may be a dense layer and a norm before it (BERT), and scaling (Granite, Cohere)
    or capping (Gemma 2) after it. All is called as modules: under ZeRO 3 a weight is there only within their forward.

    Args:
        hidden: (B, L, H), or (N, H) of any positions.

    Returns:
        (B, L, V) or (N, V).
    """
    with _known(model, hidden if hidden.ndim == 3 else hidden[None]):
        logits = model(use_cache=False).logits
    return logits if hidden.ndim == 3 else logits[0]


@torch.no_grad()
def has_linear_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are what its output embedding says of its states, and nothing is done besides.

    No config says so, and classes differ; two states whose logits are large tell dense layers, scaling and capping.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return False
    states = torch.linspace(-30, 30, 2 * layer.in_features, device=layer.weight.device).to(layer.weight)
    states = states.view(1, 2, -1)
    return torch.equal(logits_of(model, states).float(), layer(states).float())


def find_blocks(model: PreTrainedModel) -> nn.ModuleList | None:
    """The list of transformer blocks, ``layers``, ``h``, ``decoder.layers``, …; None where there is not just one."""
    lists = [blocks for blocks in _outermost_lists(model.base_model) if len(blocks) > 0]
    layers = [blocks for blocks in lists if all(isinstance(block, GradientCheckpointingLayer) for block in blocks)]
    if not layers:  # a class of before transformers marked its blocks
        layers = [blocks for blocks in lists if len(blocks) == model.config.get_text_config().num_hidden_layers]
    return layers[0] if len(layers) == 1 else None


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Those that lie in no other one, as the experts of a block do."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether it can be told where tokens are; models with ALiBi, for one, read it off the attention mask."""
    return "position_ids" in inspect.signature(model.base_model.forward).parameters


def first_position(model: PreTrainedModel) -> int:
    """The position of a row's first token: 0, but RoBERTa and its kin begin behind their padding's entry."""
    for name, module in model.base_model.named_modules():
        if name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def longest(config: PretrainedConfig) -> int | None:
    """Tokens of the longest row, by whatever name the config says it; None where nothing bounds them, as with ALiBi."""
    config = config.get_text_config()
    known = (getattr(config, name) for name in LENGTHS if hasattr(config, name))
    return next((length for length in known if type(length) is int and length > 0), None)
