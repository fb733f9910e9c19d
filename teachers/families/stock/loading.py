"""Stock networks made: new ones, those of a checkpoint, and shapes without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from teachers.companions import read_companions
from teachers.denoiser import UNBOUNDED, DenoiserSpec
from teachers.errors import UserError, nearest
from teachers.families.family import Checkpoint, Reading, unknown_family
from teachers.families.language import LANGUAGE
from teachers.families.rules import check_together, check_values
from teachers.families.stock import Stock
from teachers.families.stock.anatomy import first_position, longest
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.dtypes import Dtypes
from teachers.families.stock.outline import outline
from teachers.families.stock.reading import read_network
from teachers.families.stock.release import Release
from teachers.families.stock.trial import check_denoiser
from teachers.headers import Headers, read_headers
from teachers.quiet import quiet_transformers
from teachers.source import check_code, reason
from teachers.vocabulary import check_tokenizer, gaps_of, token_id
from teachers.weights import rows_of


def create_denoiser(model_type: str, shape: dict[str, Any], spec: DenoiserSpec) -> StockDenoiser:
    """Build a randomly initialised denoiser of a stock architecture.

    Args:
        model_type: transformers' name: "qwen3", "llama", "qwen2", …
        shape: fields of that architecture's config, e.g. ``hidden_size``.

    Raises:
        UserError: an unknown architecture or field, or values that no model can be made from.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        close = nearest(model_type, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
        raise UserError(f"model.type {model_type!r} is no causal language model of transformers{close}; try 'qwen3'")
    own = {
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.max_length,
        "eos_token_id": spec.eos_id,
        "pad_token_id": spec.pad_id,
        "bos_token_id": None,
    }
    # what transformers reads, too, under the names of older configs
    known = {**AutoConfig.for_model(model_type).to_dict(), "rope_theta": None, "rope_scaling": None}
    for key in shape:
        if key in own:
            raise UserError(f"model.shape.{key} follows from the tokenizer and data.length; leave it out")
        if key not in known:  # transformers takes any key, and leaves the field that was meant at its default
            raise UserError(f"model.shape.{key} is not a field of {model_type}{nearest(key, list(known))}")
    shape = {key: _as_declared(value, known[key]) for key, value in shape.items()}
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **own, **shape))
    except Exception as error:  # whatever a number out of range meets first: transformers, torch or the memory
        why = " ".join(str(error).split())[:200] or reason(error)
        raise UserError(f"no {model_type} can be made from model.shape ({why}); correct its values") from error
    return StockDenoiser(model, spec)


def _as_declared(value: Any, default: Any) -> Any:
    """A number of its field's kind, where no digit is lost: 2e2 is 200, and 1 is 1.0; transformers takes no other."""
    if type(default) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if type(default) is float and type(value) is int else value


def untrained_denoiser(shape: PretrainedConfig, options: Mapping[str, Any], layers: int | None = None) -> StockDenoiser:
    """A denoiser of a model's shape, without its weights, on torch's meta device.

    Args:
        shape: its config.json.
        options: of `teachers.families.family.OPTIONS`.
        layers: how many; all by default.
    """
    shape = type(shape).from_dict(shape.to_dict())
    if layers is not None:
        shape.num_hidden_layers = layers
        if getattr(shape, "layer_types", None):
            shape.layer_types = shape.layer_types[:layers]
    spec = {"mask_id": 0, **spec_fields(shape.to_dict(), options)}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        spec |= {"vocabulary": shape.vocab_size, **lengths(model, None)}
        return StockDenoiser(model, DenoiserSpec(**spec))


def read_shape(checkpoint: Checkpoint, headers: Headers | None = None) -> PretrainedConfig:
    """The stock config of a checkpoint in the format of a family's release.

    Args:
        headers: of its weights.

    Raises:
        UserError: it is of no network that the installed transformers has, or its values make none.
    """
    family, place = checkpoint.family, checkpoint.folder / "config.json"
    assert isinstance(family, Stock), "others have no stock class"
    check_values(checkpoint.config, place, headers, lists=family.runs_code)
    values = {} if family.runs_code else _stock_values(checkpoint)
    try:
        with quiet_transformers():  # it has remarks on token ids, which are checked here
            shape = (
                AutoConfig.for_model(**values)
                if values
                else AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=checkpoint.trusted)
            )
    except Exception as error:  # whatever a value of another kind or out of range meets first
        raise UserError(
            f"{place} can not be read as {family.title} ({reason(error)}); put the release's config.json back"
        ) from error
    fields = shape.to_dict()
    check_together(fields | {name: fields.get(own) for name, own in shape.attribute_map.items()}, place)
    return shape


def _stock_values(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of the stock class that a family's release is read by."""
    family = checkpoint.family
    assert isinstance(family, Stock), "others have no stock class"
    values = family.stock_config(checkpoint.config, checkpoint.folder / "config.json")
    if values["model_type"] not in CONFIG_MAPPING:
        raise UserError(
            f"{family.title} is read as {values['model_type']}, which transformers {transformers.__version__} does not "
            f"have; install transformers {family.since} or later"
        )
    return values


def _check_known(checkpoint: Checkpoint) -> None:
    """Refuse what is no causal language model of transformers, nor brings code that may run."""
    kind, stock = checkpoint.config.get("model_type"), list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if not checkpoint.trusted and not (isinstance(kind, str) and kind in stock):
        released = [name for family in LANGUAGE for name in (family.name, *family.model_types)]
        raise unknown_family(checkpoint.config, checkpoint.name, [*released, *stock])


ROW = 2048  # tokens of a canvas where nothing says how long a text is, as BLOOM's was [own]
FLOAT32 = Reading(torch.float32)


def load_model(checkpoint: Checkpoint, reading: Reading = FLOAT32) -> PreTrainedModel:
    """Load a causal language model, from safetensors only; every failure is a `UserError`."""
    family = checkpoint.family
    assert isinstance(family, Stock), "others have no stock class"
    if family.runs_code:
        _check_known(checkpoint)
        check_code(checkpoint.folder, checkpoint.config, checkpoint.trusted)
    headers = read_headers(checkpoint.folder, checkpoint.config)
    shape = read_shape(checkpoint, headers)
    empty = outline(checkpoint, shape, headers)
    if reading.empty:
        return empty
    release = None if family.runs_code else shape
    model = read_network(checkpoint, headers, reading, release, family.key_names or None)
    for head in empty.all_tied_weights_keys.keys() - model.all_tied_weights_keys.keys():
        raise UserError(
            f"model {checkpoint.name!r} has a {head} of its own, and its config.json says that it is the embedding; "
            "set tie_word_embeddings to false there if the head is to be used, or take it out of the weights"
        )
    return model


def load_stock(
    checkpoint: Checkpoint,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase | None,
    options: Mapping[str, Any],
) -> StockDenoiser:
    """See `teachers.families.stock.Stock.load`."""
    _check_attention(checkpoint, options)
    model = load_model(checkpoint, reading)
    entries = tokenizer if tokenizer is not None else model.config
    fields = {
        "eos_id": entries.eos_token_id,
        "pad_id": entries.pad_token_id,
        **spec_fields(checkpoint.config, options),
    }
    return as_denoiser(checkpoint, model, tokenizer, _mask_of(checkpoint, tokenizer, options), fields)


def as_denoiser(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    mask_id: int,
    fields: Mapping[str, Any],
    release: Release | None = None,
) -> StockDenoiser:
    """A checkpoint's network, read as it is meant to be.

    Args:
        fields: the others of its `DenoiserSpec`.

    Raises:
        UserError: the tokenizer is of another model, the fields contradict each other, or the network can not be read
            so, see `check_denoiser`.
    """
    vocabulary = rows_of(model.get_output_embeddings())
    if tokenizer is not None:
        check_tokenizer(tokenizer, vocabulary, mask_id, checkpoint.name)
    values = {**lengths(model, tokenizer), **fields, "mask_id": mask_id, "vocabulary": vocabulary}
    if tokenizer is not None:
        values["gaps"] = gaps_of(tokenizer, vocabulary, mask_id)
    dtypes = Dtypes.of(read_headers(checkpoint.folder, checkpoint.config), checkpoint.config)
    companions = read_companions(checkpoint.folder, checkpoint.config)
    columns = release is None and (checkpoint.config.get("fewstep") or {}).get("columns") is True
    denoiser = StockDenoiser(model, DenoiserSpec(**values), release, dtypes, companions, columns)
    check_denoiser(denoiser, checkpoint.name)
    return denoiser


def lengths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    """``max_length`` of a model's spec, and where nothing bounds its rows ``trained_length``, if anything says it."""
    bound = longest(model.config)
    if bound is not None:
        return {"max_length": bound - first_position(model)}
    known = model.config.to_dict().get("seq_length"), None if tokenizer is None else tokenizer.model_max_length
    fitting = (length for length in known if type(length) is int and 0 < length < UNBOUNDED)
    return {"max_length": UNBOUNDED, "trained_length": next(fitting, ROW)}


def _mask_of(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None, options: Mapping[str, Any]) -> int:
    own = token_id(tokenizer, "mask") if tokenizer is not None else None
    for mask_id in (options.get("mask_id"), checkpoint.config.get("mask_token_id"), own):
        if mask_id is not None:
            return mask_id
    raise UserError(
        f"model {checkpoint.name!r} names no mask token, nor does its tokenizer: if it is autoregressive, make a "
        "denoiser of it with fewstep convert; if it is a denoiser, set mask_id, or mask_token_id in its config.json"
    )


def _check_attention(checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
    """A model that calls itself causal is read in both directions only by somebody who says so."""
    config = checkpoint.config
    if config.get("is_causal") is True and not config.get("fewstep") and "attention" not in options:
        raise UserError(
            f"model {checkpoint.name!r} is autoregressive: its config.json says is_causal: true; make a denoiser of it "
            "with fewstep convert, or set attention to full or block if it was trained as one"
        )


def says_denoiser(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has any sign that its model was trained to fill in masks."""
    return bool(config.get("fewstep")) or config.get("is_causal") is False or config.get("mask_token_id") is not None


def spec_fields(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `DenoiserSpec` that a checkpoint of ours says, in its config.json, or that the options say instead."""
    known = {f.name for f in fields(DenoiserSpec)}
    saved = {key: value for key, value in (config.get("fewstep") or {}).items() if key in known}
    if options.get("attention", "block") != "block":
        saved.pop("block_size", None)
    return {**saved, **options}


def load_as_others(folder: Path) -> nn.Module:
    """The network in a stock folder as anybody's transformers loads it, computed in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )
    return model


@torch.no_grad()
def stock_logits(network: nn.Module, tokens: Tensor) -> Tensor:
    """What a network of a stock class gives for (B, L) tokens: (B, L, V) float64, before any shift."""
    return network(input_ids=tokens, use_cache=False).logits.double()
