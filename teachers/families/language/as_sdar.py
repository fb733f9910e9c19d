"""A block-attention Qwen3 student written as SDAR, which SGLang and LMDeploy serve: the same network and key names.

Two things differ. The engines take `MASK_ID` for the mask whatever config.json says, so the mask's rows move there. And
they read ``rope_theta`` at the top level, where transformers 5 no longer writes it, and else use 10,000 in silence.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from teachers.companions import is_tokenizer
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.dtypes import Dtypes
from teachers.families.stock.release import Release
from teachers.families.stock.saving import released_tensors
from teachers.source import read_object
from teachers.vocabulary import gaps_of, read_tokenizer
from teachers.weights import weight_of

MASK_ID, MASK_TOKEN = 151669, "<|MASK|>"
NAMES = {"qwen3": ("sdar", "SDAR"), "qwen3_moe": ("sdar_moe", "SDARMoe")}
"""model_type of a stock class → of SDAR's, and what its classes' names begin with."""
DENSE = (
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "tie_word_embeddings", "vocab_size",
)  # fmt: skip
EXPERTS = (
    "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts",
    "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef",
)  # fmt: skip


def check_sdar(config: PretrainedConfig, spec: DenoiserSpec) -> None:
    """Refuse what SDAR can not be.

    Args:
        config: of the stock class.

    Raises:
        UserError: another architecture, attention, or a shift.
    """
    values = config.to_dict()
    reasons = {
        f"its model_type is {config.model_type!r}, not {' or '.join(NAMES)}": config.model_type not in NAMES,
        f"its attention is {spec.attention!r}, not 'block'": spec.attention != "block",
        "it predicts the next position (shift)": spec.shift,
        "it has sliding windows": values.get("use_sliding_window"),
        "it does not normalise its experts' weights": values.get("norm_topk_prob") is False,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"this student can not be written as SDAR: {reason}; choose layout own or stock")


def sdar_config(config: PretrainedConfig, spec: DenoiserSpec, dtypes: Dtypes) -> dict[str, Any]:
    """The config.json of a stock network under SDAR's names; `check_sdar` accepts it."""
    model_type, prefix = NAMES[config.model_type]
    keys = DENSE + EXPERTS if model_type == "sdar_moe" else DENSE
    rotary = dict(config.rope_parameters)
    theta = rotary.pop("rope_theta")
    return {
        "architectures": [f"{prefix}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"configuration_{model_type}.{prefix}Config",
            "AutoModel": f"modeling_{model_type}.{prefix}Model",
            "AutoModelForCausalLM": f"modeling_{model_type}.{prefix}ForCausalLM",
        },
        "model_type": model_type,
        "block_size": spec.block_size,
        "mask_token_id": spec.mask_id,
        **{key: getattr(config, key) for key in keys},
        "head_dim": config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads,
        "rope_theta": theta,
        "rope_scaling": None if rotary["rope_type"] == "default" else rotary,
        "sliding_window": None,
        "use_sliding_window": False,
        "torch_dtype": str(dtypes.usual_type).removeprefix("torch."),
        "use_cache": True,
        "transformers_version": transformers.__version__,
    }


@contextmanager
def as_sdar(
    denoiser: StockDenoiser, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[StockDenoiser, PreTrainedTokenizerBase | None]]:
    """See `Denoiser.laid_out`: the mask at `MASK_ID` where the vocabulary reaches so far and the tokenizer allows it.

    The parameters are shared: the rows are exchanged in place, and put back at the end.

    Raises:
        UserError: see `check_sdar`.
    """
    model, spec = denoiser.model, denoiser.spec
    check_sdar(model.config, spec)
    moved, words = spec, tokenizer
    if tokenizer is not None and spec.vocabulary > MASK_ID and MASK_ID not in (spec.mask_id, spec.eos_id, spec.pad_id):
        with_mask = tokenizer_with_mask_at(tokenizer, spec.mask_id, MASK_ID)
        if with_mask is not None:
            gaps = gaps_of(with_mask, spec.vocabulary, MASK_ID) if spec.gaps else ()
            moved, words = dataclasses.replace(spec, mask_id=MASK_ID, gaps=gaps), with_mask
    try:
        _exchange(denoiser, spec.mask_id, moved.mask_id)
        release = Release(
            sdar_config(model.config, moved, denoiser.dtypes), {}, denoiser.capabilities - {"stock class"}
        )
        dtypes, same = denoiser.dtypes.only(released_tensors(model)), words is tokenizer
        own = {name: content for name, content in denoiser.companions.items() if same and is_tokenizer(name)}
        yield StockDenoiser(model, moved, release, dtypes, own), words
    finally:
        _exchange(denoiser, spec.mask_id, moved.mask_id)
        StockDenoiser(model, spec)  # the model's config says again what it was


@torch.no_grad()
def _exchange(denoiser: StockDenoiser, one: int, other: int) -> None:
    tables: list[Tensor] = [weight_of(denoiser.model.get_input_embeddings()), weight_of(denoiser.output_layer)]
    for table in {id(table): table for table in tables}.values():  # a tied head is the embedding
        table[[one, other]] = table[[other, one]]


def tokenizer_with_mask_at(
    tokenizer: PreTrainedTokenizerBase, mask_id: int, place: int
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a denoiser whose entries ``mask_id`` and ``place`` are exchanged; None where there can be none.

    Where only one of them has a word, that can not move: the other id would need one. A mask at the first free id
    becomes `MASK_TOKEN`; a word that was the mask before then stays behind as one that is never drawn in training.
    """
    ids = set(tokenizer.get_vocab().values())
    if mask_id in ids and place in ids:
        return _exchanged(tokenizer, {mask_id: place, place: mask_id})
    if place in ids:
        return None
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"mask_token": MASK_TOKEN})
    if copied.mask_token_id == place:
        return copied
    return None if mask_id in ids else tokenizer


def _exchanged(tokenizer: PreTrainedTokenizerBase, other_id: dict[int, int]) -> PreTrainedTokenizerBase:
    """The tokenizer with other ids for some of its entries; transformers has no call for that, but a file."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        state = read_object(path)
        for entry in state["added_tokens"]:
            entry["id"] = other_id.get(entry["id"], entry["id"])
        state["added_tokens"].sort(key=lambda entry: entry["id"])
        vocabulary = state["model"]["vocab"]
        state["model"]["vocab"] = {word: other_id.get(entry, entry) for word, entry in vocabulary.items()}
        path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        return read_tokenizer(Path(folder))
