"""What the fields of a config.json may be, checked before anything is made of them.

transformers checks types and little else, and a config.json may say anything: a billion layers, heads that do not
divide, a norm's epsilon of NaN. What is found here is one line with the value, the rule and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from teachers.errors import UserError, nearest
from teachers.headers import Headers

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
SIZES = (
    *LAYERS, "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "embedding_size", "d_model", "n_heads", "n_kv_heads", "mlp_hidden_size", "mlp_ratio",
    "max_sequence_length", "n_embd", "n_head", "n_positions", "n_ctx", "n_inner", "block_size", "bd_size",
)  # fmt: skip
COUNTS = (
    *EXPERTS, "num_experts_per_tok", "num_shared_experts", "n_group", "topk_group", "moe_intermediate_size",
    "dense_intermediate_size", "expert_intermediate_size", "shared_expert_intermediate_size", "first_k_dense_replace",
    "sliding_window", "mask_token_id",
)  # fmt: skip
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
POSITIVE = ("rope_theta", "routed_scaling_factor")
MOST_LAYERS = 10_000  # of a network whose weights are not at hand [own]


def is_size(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number of at least 1."""
    return type(value) is int and value >= 1


def _is_count(value: Any) -> bool:
    return value is False or (type(value) is int and value >= 0)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return _is_positive(value) and value <= 1


def _is_table(value: Any) -> bool:
    return value is False or isinstance(value, dict)


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(SIZES, (is_size, "it must be a whole number of at least 1")),
    **dict.fromkeys(COUNTS, (_is_count, "it must be a whole number of at least 0")),
    **dict.fromkeys(POSITIVE, (_is_positive, "it must be a number above 0")),
    **dict.fromkeys((*EPSILONS, "partial_rotary_factor"), (_is_share, "it must be a number above 0 and at most 1")),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), (_is_table, "it must be an object with a rope_type, or null")),
}
"""Field → what its value must be, where it has one."""
IS_FLAG = (lambda value: type(value) is bool, "it must be true or false")
SECTION: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("vocabulary", "max_length", "trained_length", "block_size"), RULES["vocab_size"]),
    **dict.fromkeys(("mask_id", "eos_id", "pad_id"), RULES["mask_token_id"]),
    **dict.fromkeys(("shift", "time_conditioned"), IS_FLAG),
    "attention": (lambda value: value in ("full", "block", "causal"), "it must be full, block or causal"),
    "family": (lambda value: isinstance(value, str), "it must be a name that fewstep teachers lists"),
}
"""The same for the section "fewstep" of a config.json, which an export of ours has."""
ROTARY = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def refusal(place: str | Path, name: str, value: Any, rule: str) -> UserError:
    """One line on a field of the config.json at ``place``."""
    return UserError(f"{place} has {name} {value!r:.80}; {rule}: put the release's config.json back, or correct it")


def check_section(config: Mapping[str, Any], place: str | Path) -> None:
    """Refuse a section "fewstep" that no export of ours has.

    Raises:
        UserError: it is none, or one of its values is of the wrong type.
    """
    section = config.get("fewstep")
    if section is not None and not isinstance(section, dict):
        raise refusal(place, "fewstep", section, "it must be a section, as an export of ours has it")
    for name, (is_allowed, rule) in SECTION.items():
        value = (section or {}).get(name)
        if value is not None and not is_allowed(value):
            raise refusal(place, f"fewstep.{name}", value, rule)


def check_values(
    config: Mapping[str, Any], place: str | Path, headers: Headers | None = None, lists: bool = False
) -> None:
    """Refuse fields that no network can have.

    Args:
        config: a config.json.
        place: where it is, for the message.
        headers: of the weights that belong to it, which say how many layers there can be.
        lists: whether a field may have one value a layer, as some stock classes have it.

    Raises:
        UserError: a field is of the wrong type or out of range.
    """
    for name, (is_allowed, rule) in RULES.items():
        value = config.get(name)
        if value is not None and not (lists and isinstance(value, list)) and not is_allowed(value):
            raise refusal(place, name, value, rule)
    layers = MOST_LAYERS if headers is None else len(headers.tensors)
    rows = 0 if headers is None else max((shape[0] for shape in headers.shapes.values() if shape), default=0)
    for names, most in ((LAYERS, layers), (EXPERTS, max(layers, rows))):
        for name in names:
            if is_size(config.get(name)) and config[name] > most:
                raise refusal(place, name, config[name], f"there can be {most} at most, as many as the files hold")


def check_together(fields: Mapping[str, Any], place: str | Path) -> None:
    """Refuse fields that are at odds with each other.

    Args:
        fields: of a stock class's config, under the names that most of them share.
        place: see `check_values`.

    Raises:
        UserError: some are.
    """
    sizes = {name: value for name, value in fields.items() if is_size(value)}
    heads, width = sizes.get("num_attention_heads", 1), sizes.get("head_dim")
    if heads % sizes.get("num_key_value_heads", 1):
        rule = f"it must divide the {heads} heads"
        raise refusal(place, "num_key_value_heads", sizes["num_key_value_heads"], rule)
    if width is None and sizes.get("hidden_size", 0) % heads:
        raise refusal(place, "num_attention_heads", heads, f"it must divide the width, {sizes['hidden_size']}")
    if width is not None and width % 2 and "rope_parameters" in fields:
        raise refusal(place, "head_dim", width, "rotary positions need an even one")
    experts = min((sizes[name] for name in EXPERTS if name in sizes), default=math.inf)
    if sizes.get("num_experts_per_tok", 0) > experts:
        raise refusal(place, "num_experts_per_tok", sizes["num_experts_per_tok"], f"there are {experts} experts")
    _check_rotary(fields.get("rope_parameters"), place)


def _check_rotary(parameters: Any, place: str | Path) -> None:
    """Rotary parameters are one table, or one for each kind of layer."""
    if not isinstance(parameters, Mapping):
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = ["default", *ROPE_INIT_FUNCTIONS]
    for table in [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]:
        kind = table.get("rope_type", "default")
        if kind not in known:
            rule = f"it must be one of {', '.join(known)}{nearest(str(kind), known)}"
            raise refusal(place, "a rope_scaling of type", kind, rule)
        for name in ROTARY:
            if table.get(name) is not None and not _is_positive(table[name]):
                raise refusal(place, f"a rope_scaling whose {name} is", table[name], "it must be a number above 0")
        if table.get("partial_rotary_factor") is not None and not _is_share(table["partial_rotary_factor"]):
            rule = "it must be a number above 0 and at most 1"
            raise refusal(place, "partial_rotary_factor", table["partial_rotary_factor"], rule)
