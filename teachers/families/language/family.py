"""A family of released language models as a table: which stock class computes it, under which names.

No family needs code of its own: the release's config.json is read into the stock class's config, and the tensors'
names into that class's names, by transformers' own loader. Saving writes the release's names and config again.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from teachers.errors import UserError
from teachers.families.family import Checkpoint, Facts, Family, Reading
from teachers.families.stock import CAPABILITIES, Stock

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Denoiser
    from teachers.families.stock.denoiser import StockDenoiser

GROUPED = 8  # numbers, in bfloat16, that the kernel for grouped experts reads at once: 16 bytes [code]
Names = Mapping[str, str]
Allowed = Mapping[str, tuple[Any, ...]]
OFF: tuple[Any, ...] = (None, False)


def same(*names: str) -> dict[str, str]:
    """Fields that are called in the stock class as in the release."""
    return {name: name for name in names}


DECODER = same(
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps", "vocab_size", "hidden_act",
)  # fmt: skip
"""Fields of every network of the Llama kind."""


EXPERTS = CAPABILITIES - {"stock class", "compression"}
"""Experts' weights are no linear layers, which compression rounds."""


class LanguageFamily(Stock):
    """A table.

    Attributes:
        model_types: of config.json.
        stock_type: the model_type of the stock class that computes the same function.
        fields: field of the stock config → of the release's, which must say it.
        optional: the same, where the release may leave it out.
        fixed: what the release's network has whatever its config.json says.
        allowed: keys of config.json under whose other values the network would be another one.
        mask_token, mask_id: as released, for where neither config nor tokenizer says.
        shift, attention, block_size: see `teachers.denoiser.DenoiserSpec`; the size unless ``block_key`` says another.
        block_key: of config.json.
        block_suffix: of a release's name, before its block size, where config.json has no ``block_key``.
        rotary: whether positions are rotated into the heads.
    """

    capabilities = CAPABILITIES - {"stock class"}
    options = frozenset({"mask_id"})
    runs_code = False
    model_types: ClassVar[tuple[str, ...]]
    stock_type: ClassVar[str]
    fields: ClassVar[Names]
    optional: ClassVar[Names] = same("tie_word_embeddings")
    fixed: ClassVar[Mapping[str, Any]] = {}
    allowed: ClassVar[Allowed] = {}
    mask_token: ClassVar[str | None] = None
    mask_id: ClassVar[int | None] = None
    shift: ClassVar[bool] = False
    attention: ClassVar[Literal["full", "block"]] = "full"
    block_size: ClassVar[int | None] = None
    block_key: ClassVar[str | None] = None
    block_suffix: ClassVar[str | None] = None
    rotary: ClassVar[bool] = True
    verified = "law, traces"

    def facts(self) -> Facts:
        """See `Family.facts`."""
        attention = f"blocks of {self.block_size}" if self.attention == "block" else "full"
        return Facts(self.stock_type, str(self.mask_id), "yes" if self.shift else "no", attention)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """See `Family.recognises`."""
        return config.get("model_type") in self.model_types

    def load(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> StockDenoiser:
        """See `Family.load`."""
        from teachers.families.language.loading import load_released

        return load_released(self, checkpoint, reading, tokenizer, options)

    def network_logits(self, denoiser: Denoiser, tokens: Tensor) -> Tensor:
        """The law, as everywhere but in a stock folder; see `Family.network_logits`."""
        return Family.network_logits(self, denoiser, tokens)

    def written_logits(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None, tokens: Tensor
    ) -> Tensor:
        """Through this door, the only one for a release's format that runs no code of it."""
        return Family.written_logits(self, checkpoint, tokenizer, tokens)

    def sketch(self, checkpoint: Checkpoint, blocks: int | None = None, **options: Any) -> StockDenoiser:
        """See `Family.sketch`."""
        fields = self.spec_fields(checkpoint.config, self.checkpoint_settings(checkpoint, options))
        return super().sketch(checkpoint, blocks, **{**options, **fields})

    def settings(self, config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """What a person has set: now, or when a folder was written that says so under "fewstep"."""
        written = config.get("fewstep") or {}
        kept = {key: written[key] for key in sorted(self.options) if key in written}
        if options.get("attention", "block") != "block":
            kept.pop("block_size", None)
        return {**kept, **options}

    def checkpoint_settings(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> dict[str, Any]:
        """The same, and the block size that nothing but the checkpoint's name says."""
        settings, size = self.settings(checkpoint.config, options), self.named_block_size(checkpoint)
        if size is None or settings.get("attention", "block") != "block":
            return settings
        return {"block_size": size, **settings}

    def named_block_size(self, checkpoint: Checkpoint) -> int | None:
        """The block size at the end of the checkpoint's name or its folder's; None where config.json says one."""
        if self.block_suffix is None or (self.block_key and checkpoint.config.get(self.block_key)):
            return None
        places = checkpoint.name.partition("@")[0].rstrip("/"), checkpoint.folder.name
        found = (re.search(rf"{self.block_suffix}([1-9][0-9]*)$", place) for place in places)
        return next((int(match[1]) for match in found if match), None)

    def spec_fields(self, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """How the network is to be read: shift, attention and block_size of its `DenoiserSpec`.

        Args:
            settings: of `settings`.
        """
        block_size = settings.get("block_size")
        attention = settings.get("attention") or ("block" if block_size else self.attention)
        if attention == "block" and block_size is None:
            block_size = (config.get(self.block_key) if self.block_key else None) or self.block_size
        return {"shift": self.shift, "attention": attention, "block_size": block_size}

    def released_mask(self, config: Mapping[str, Any], vocabulary: int) -> int | None:
        """The mask's id in the releases; None where it does not fit.

        Args:
            config: the checkpoint's.
            vocabulary: rows of the embedding.
        """
        return self.mask_id if self.mask_id is not None and self.mask_id < vocabulary else None

    def stock_config(self, config: Mapping[str, Any], place: str | Path) -> dict[str, Any]:
        """The config.json that the same network has as a stock class; see `Stock.stock_config`."""
        config = copy.deepcopy(dict(config))
        self.check_config(config, place)
        names = {**self.fields, **self.optional}
        values = {stock: config[own] for stock, own in names.items() if config.get(own) is not None}
        if self.rotary:
            values["rope_parameters"] = _rotary_positions(config, place, self.title)
        values |= {"model_type": self.stock_type, "is_causal": False, **self.fixed, **self.derived(config)}
        values["fewstep"] = self.spec_fields(config, self.settings(config, {}))
        if not _are_whole(values):
            values["experts_implementation"] = "eager"
        return values

    def derived(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the stock config that follow from several of the release's, or from values written otherwise."""
        return {}

    def check_config(self, config: Mapping[str, Any], place: str | Path) -> None:
        """Refuse a config.json of another network than the stock class's.

        Raises:
            UserError: it lacks a field, or has a value that is not allowed.
        """
        for key in self.fields.values():
            if config.get(key) is None:
                raise _lacks(key, place, self.title)
        for key, values in {**self.allowed, **_windows(config)}.items():
            if key in config and config[key] not in values:
                allowed = " or ".join(json.dumps(value) for value in values)
                raise UserError(
                    f"{place} has {key} {config[key]!r}, which is another network than {self.title}: {key} must be "
                    f"{allowed}, as in every release; nothing here reads another one"
                )


def _lacks(key: str, place: str | Path, title: str) -> UserError:
    return UserError(f"{place} has no {key}, which {title} has; put the release's config.json back")


def _rotary_positions(config: Mapping[str, Any], place: str | Path, title: str) -> dict[str, Any]:
    """As transformers 5 writes them: in one field, where the releases have two or three."""
    together, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    if isinstance(together, dict):
        return together
    if config.get("rope_theta") is None:
        raise _lacks("rope_theta", place, title)
    scaled = {"rope_type": scaling.get("type"), **scaling} if isinstance(scaling, dict) else {"rope_type": "default"}
    part = {key: config[key] for key in ("partial_rotary_factor",) if config.get(key) is not None}
    return {"rope_theta": config["rope_theta"], **part, **scaled}


def _windows(config: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Windows of attention must be off: they would hide positions that the releases' own networks see."""
    full = ["full_attention"] * len(layers) if isinstance(layers := config.get("layer_types"), list) else None
    return {"use_sliding_window": OFF, "layer_types": (None, full)}


def _are_whole(values: Mapping[str, Any]) -> bool:
    """Whether the rows of all experts' weights, if there are any, are whole units of the grouped kernel."""
    widths = [values["hidden_size"], values["moe_intermediate_size"]] if "moe_intermediate_size" in values else []
    return all(isinstance(width, int) and width % GROUPED == 0 for width in widths)
