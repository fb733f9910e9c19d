"""Fields of a stock config: what each may be, checked before transformers makes anything of them.

transformers checks types and little else, and a config.json may say anything: a billion layers, heads that do not
divide, a norm's epsilon of NaN. What is found here is one line; what gets through makes a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from teachers.errors import UserError, nearest
from teachers.headers import Headers

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
SIZES = (
    *LAYERS, *EXPERTS, "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "moe_intermediate_size", "num_experts_per_tok", "n_embd", "n_head",
    "n_positions", "n_inner", "sliding_window",
)  # fmt: skip
POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta")
SHARES = ("partial_rotary_factor",)


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return _is_positive(value) and value <= 1


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(SIZES, (_is_size, "a whole number of at least 1")),
    **dict.fromkeys(POSITIVE, (_is_positive, "a number above 0")),
    **dict.fromkeys(SHARES, (_is_share, "a number above 0 and at most 1")),
}


def read_fields(
    fields: Mapping[str, Any], headers: Headers, place: Path, own_names: Mapping[str, str] | None = None
) -> PretrainedConfig:
    """The config of a stock class.

    Args:
        fields: with their model_type.
        headers: of the weights, which say how many layers there can be.
        place: of the config.json, for the message.
        own_names: field → what the file calls it, where it has a name of its own.

    Raises:
        UserError: a field is missing, of the wrong type, out of range, or at odds with another one.
    """
    say = _Refusal(place, own_names or {})
    for name in RULES.keys() & fields.keys():
        is_allowed, rule = RULES[name]
        if fields[name] is not None and not is_allowed(fields[name]):
            raise say(name, fields[name], f"it must be {rule}")
    _check_counts(fields, headers, say)
    try:
        config = CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields))
    except Exception as error:  # whatever a value out of range meets first
        raise UserError(f"{place} makes no {fields['model_type']} ({_reason(error)}); correct it") from error
    check_config(config, say)
    return config


class _Refusal:
    """One line on a field of a config.json."""

    def __init__(self, place: Path, own_names: Mapping[str, str]):
        self.place, self.own_names = place, own_names

    def __call__(self, name: str, value: Any, rule: str) -> UserError:
        shown = f"{value!r:.80}"
        return UserError(f"{self.place} has {self.own_names.get(name, name)} {shown}; {rule}, as the release has it")


def _check_counts(fields: Mapping[str, Any], headers: Headers, say: _Refusal) -> None:
    """Refuse more layers or experts than the files can hold, before any is made."""
    most = max([len(headers.tensors), *(shape[0] for shape in headers.shapes.values() if shape)])
    for names, limit in ((LAYERS, len(headers.tensors)), (EXPERTS, most)):
        for name in names:
            value = fields.get(name)
            if value is not None and value > limit:
                raise say(name, value, f"its weights are {len(headers.tensors)} tensors, too few for that: correct it")


def check_config(config: PretrainedConfig, say: _Refusal) -> None:
    """Refuse fields that are at odds with each other.

    Raises:
        UserError: some are.
    """
    fields = config.to_dict()
    fields |= {name: fields.get(own) for name, own in config.attribute_map.items()}
    sizes = {name: value for name, value in fields.items() if _is_size(value)}
    heads, width = sizes.get("num_attention_heads", 1), sizes.get("head_dim")
    if heads % sizes.get("num_key_value_heads", 1):
        raise say("num_key_value_heads", sizes["num_key_value_heads"], f"it must divide num_attention_heads, {heads}")
    if width is None and sizes.get("hidden_size", 0) % heads:
        raise say("num_attention_heads", heads, f"it must divide hidden_size, {sizes['hidden_size']}")
    if width is not None and width % 2 and "rope_parameters" in fields:
        raise say("head_dim", width, "rotary positions need an even one")
    experts = min((sizes[name] for name in EXPERTS if name in sizes), default=math.inf)
    if sizes.get("num_experts_per_tok", 0) > experts:
        raise say("num_experts_per_tok", sizes["num_experts_per_tok"], f"there are {experts} experts")
    _check_rotary(fields.get("rope_parameters"), say)


def _check_rotary(parameters: Any, say: _Refusal) -> None:
    """Rotary parameters are one table, or one for each kind of layer."""
    if not isinstance(parameters, Mapping):
        return
    tables = [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]
    known = ["default", *ROPE_INIT_FUNCTIONS]
    for table in tables:
        kind = table.get("rope_type", "default")
        if kind not in known:
            allowed = f"it is one of {', '.join(known)}{nearest(str(kind), known)}"
            raise say("rope_type", kind, allowed)
        for name in ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            if table.get(name) is not None and not _is_positive(table[name]):
                raise say(name, table[name], "it must be a number above 0")
        if table.get("partial_rotary_factor") is not None and not _is_share(table["partial_rotary_factor"]):
            raise say("partial_rotary_factor", table["partial_rotary_factor"], "it must be above 0 and at most 1")


def _reason(error: BaseException) -> str:
    """All lines of another library's error in one, short enough to quote."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
