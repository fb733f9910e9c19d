"""Released language models made into denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from teachers.errors import UserError
from teachers.families.family import Checkpoint, Reading
from teachers.families.language.family import LanguageFamily
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.loading import as_denoiser, load_model
from teachers.families.stock.release import Release
from teachers.source import reason
from teachers.vocabulary import read_tokenizer, token_id
from teachers.weights import rows_of


def load_released(
    family: LanguageFamily,
    checkpoint: Checkpoint,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase | None,
    options: Mapping[str, Any],
) -> StockDenoiser:
    """See `teachers.families.family.Family.load`."""
    settings = family.checkpoint_settings(checkpoint, options)
    model = load_model(checkpoint, reading)
    model.generation_config = GenerationConfig()  # how the release samples is no part of the network
    vocabulary = rows_of(model.get_output_embeddings())
    mask_id = _mask_of(family, checkpoint, tokenizer, settings, vocabulary)
    named = {} if family.recognises_files(checkpoint.config, "", checkpoint.folder) else {"family": family.name}
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    release = Release(config, named | settings, family.capabilities)
    fields = {
        "eos_id": _entry(checkpoint.config, "eos_token_id", vocabulary),
        "pad_id": _entry(checkpoint.config, "pad_token_id", vocabulary),
        **family.spec_fields(checkpoint.config, settings),
    }
    if tokenizer is not None:
        fields |= {"eos_id": token_id(tokenizer, "eos"), "pad_id": token_id(tokenizer, "pad")}
    model.config.eos_token_id = fields["eos_id"]  # the stock class's default is another model's
    return as_denoiser(checkpoint, model, tokenizer, mask_id, fields, release)


def _entry(config: Mapping[str, Any], key: str, vocabulary: int) -> int | None:
    """A token's id; the first, where there are several; None for one that the network does not have."""
    value = config.get(key)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and 0 <= value < vocabulary else None


def _mask_of(
    family: LanguageFamily,
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Mapping[str, Any],
    vocabulary: int,
) -> int:
    """The mask: as it is set, as config.json or the tokenizer declare it, or as the family's releases have it."""
    for mask_id in (settings.get("mask_id"), checkpoint.config.get("mask_token_id")):
        if mask_id is not None:
            return mask_id
    words = _own_tokenizer(checkpoint) if tokenizer is None else tokenizer
    declared = None if words is None else token_id(words, "mask")
    spelled = None if words is None or family.mask_token is None else words.get_vocab().get(family.mask_token)
    for mask_id in (declared, spelled, family.released_mask(checkpoint.config, vocabulary)):
        if mask_id is not None:
            return mask_id
    raise UserError(
        f"{checkpoint.name!r} names no mask token, its tokenizer has no {family.mask_token}, and the mask of the "
        f"releases, {family.mask_id}, is none of its {vocabulary} entries; set mask_id in the config"
    )


def _own_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    if not (checkpoint.folder / "tokenizer_config.json").is_file():
        return None
    try:
        return read_tokenizer(checkpoint.folder)
    except Exception as error:  # tokenizers raises bare ones
        raise UserError(f"cannot read the tokenizer of model {checkpoint.name!r} ({reason(error)})") from error
