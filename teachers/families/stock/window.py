"""A pass of a stock model over a part of a canvas, with the keys and values of the rest kept."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from teachers.cache import Window

_LAYERS: WeakKeyDictionary[PreTrainedModel, list[GradientCheckpointingLayer]] = WeakKeyDictionary()


class WindowCache(Cache):
    """What transformers takes for a cache: each layer hands in its new keys and values, and is given all it reads.

    Attributes:
        written: the layers that handed theirs in.
    """

    def __init__(self, window: Window):
        super().__init__(layers=[])
        self.window, self.written = window, set[int]()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values (R, N, Q, D), and give back the (R, N, E, D) that its queries read."""
        self.written.add(layer_idx)
        return self.window.put(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns are read beside those that are sent."""
        return self.window.keys - self.window.width


def states_in_window(model: PreTrainedModel, inputs: dict[str, Tensor | None], window: Window) -> Tensor:
    """(R, Q, H) final hidden states of the columns that are sent.

    Args:
        inputs: what the base model's ``forward`` is given beside the cache.
    """
    cache = WindowCache(window)
    with _computed_once(model):
        argument = cache_argument(type(model.base_model))
        states = model.base_model(**inputs, **{argument: cache}, use_cache=True).last_hidden_state
    assert cache.written, f"{type(model).__name__} keeps its keys and values elsewhere"
    return states


@contextmanager
def _computed_once(model: PreTrainedModel) -> Iterator[None]:
    """Within, no layer is one whose activations are computed again: transformers 5.17 gives such a layer no cache."""
    layers = [layer for layer in _checkpointed(model) if layer.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def _checkpointed(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The layers whose activations can be computed again, found once for all passes of a network."""
    if model not in _LAYERS:
        _LAYERS[model] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return _LAYERS[model]


@lru_cache
def cache_argument(network: type[nn.Module]) -> str:
    """What a base model's ``forward`` calls its cache: "cache" from transformers 5.24 on, where it was renamed."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
