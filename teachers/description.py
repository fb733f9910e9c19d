"""What a checkpoint is and what would be done with it, said without reading a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teachers.capability import in_words
from teachers.families import FAMILIES, Checkpoint, Family
from teachers.families.language.family import LanguageFamily
from teachers.headers import read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.denoiser import Denoiser, DenoiserSpec

RELEASED = "as the releases have it; no file says so"
BLOCK_KEYS = ("block_size", "bd_size")
"""What config.json calls the size of blocks: most, Fast-dLLM's."""
WIDTHS = {"float32": 4, "bfloat16": 2}
"""Bytes of a parameter in the precisions that networks are read in."""


@dataclass(frozen=True)
class FamilyFacts:
    """One family of checkpoints, as a row of a table.

    Attributes:
        name: for ``teacher.family``.
        releases: repositories that it stands for.
        network: what computes it: a stock class of transformers, by its model_type, or code of ours.
        mask_id, shift, attention: see `teachers.denoiser.DenoiserSpec`.
        verified: what has been compared with the family's own code.
        served: engines that serve its format.
        without: what can not be done with it.
    """

    name: str
    releases: tuple[str, ...]
    network: str
    mask_id: str
    shift: str
    attention: str
    verified: str
    served: tuple[str, ...]
    without: tuple[str, ...]


def families() -> list[FamilyFacts]:
    """Every family of checkpoints that can be a teacher.

    >>> [family.mask_id for family in families() if family.name == "llada"]
    ['126336']
    """
    return [_row(family) for family in sorted(FAMILIES, key=lambda family: not family.releases)]


def _row(family: Family) -> FamilyFacts:
    facts = family.facts()
    return FamilyFacts(
        family.name, family.releases, facts.network, facts.mask_id, facts.shift, facts.attention, family.verified,
        family.served, tuple(in_words(family.capabilities)[1]),
    )  # fmt: skip


@dataclass(frozen=True)
class Description:
    """A checkpoint.

    Attributes:
        name, folder: as it was given, and where it is.
        family, title: of its format.
        network: the class that computes it.
        parameters: numbers in it; what two layers share counts once.
        disk: bytes of all tensors in its files.
        dtypes: numbers in the files by dtype.
        shards: files that hold them.
        vocabulary: V, columns of its law.
        entries: of its tokenizer; None without one.
        tokenizer: its name.
        mask_id, mask_source: the mask, and who says so.
        block_source: who says how large blocks are; None without blocks.
        shift, attention, block_size, time_conditioned: see `teachers.denoiser.DenoiserSpec`.
        length: tokens of a canvas, unless told otherwise.
        rotary, sliding_window, tied: see `teachers.families.family.Traits`.
        memory: bytes to load it, by precision.
        can, without: what can be done with it, and what not.
        warnings: what to look at.
    """

    name: str
    folder: str
    family: str
    title: str
    network: str
    parameters: int
    disk: int
    dtypes: dict[str, int]
    shards: int
    vocabulary: int
    entries: int | None
    tokenizer: str
    mask_id: int
    mask_source: str
    shift: bool
    attention: str
    block_size: int | None
    block_source: str | None
    time_conditioned: bool
    length: int
    rotary: str | None
    sliding_window: int | None
    tied: bool
    memory: dict[str, int]
    can: tuple[str, ...]
    without: tuple[str, ...]
    warnings: tuple[str, ...]


def describe(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> Description:
    """What a checkpoint is, of its config.json, its tokenizer and the headers of its weights.

    Args:
        tokenizer: its own; None where there is none to be had.
        options: what a config's teacher section says of it, of `teachers.families.family.OPTIONS`.

    Raises:
        UserError: whatever loading it would refuse, but for the weights' values.
    """
    denoiser = checkpoint.outline(tokenizer, **options)
    traits, spec = checkpoint.family.traits(checkpoint, denoiser), denoiser.spec
    headers = read_headers(checkpoint.folder, checkpoint.config)
    dtypes: Counter[str] = Counter()
    for tensor in headers.tensors.values():
        dtypes[tensor.dtype] += tensor.numbers
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    can, without = _uses(denoiser)
    return Description(
        name=checkpoint.name,
        folder=str(checkpoint.folder),
        family=checkpoint.family.name,
        title=checkpoint.family.title,
        network=traits.network,
        parameters=parameters,
        disk=headers.bytes,
        dtypes=dict(dtypes.most_common()),
        shards=len(headers.files),
        vocabulary=spec.vocabulary,
        entries=None if tokenizer is None else len(tokenizer),
        tokenizer=checkpoint.family.tokenizer(checkpoint),
        mask_id=spec.mask_id,
        mask_source=_mask_source(checkpoint, tokenizer, options, spec.mask_id),
        shift=spec.shift,
        attention=spec.attention,
        block_size=spec.block_size,
        block_source=_block_source(checkpoint, options, spec.block_size),
        time_conditioned=spec.time_conditioned,
        length=spec.length,
        rotary=traits.rotary,
        sliding_window=traits.sliding_window,
        tied=traits.tied,
        memory={precision: width * parameters for precision, width in WIDTHS.items()},
        can=tuple(can),
        without=tuple(without),
        warnings=tuple(_warnings(checkpoint, tokenizer, spec, traits.unread)),
    )


def _uses(denoiser: Denoiser) -> tuple[list[str], list[str]]:
    """What can be done with it, and what not; an autoregressive model is no denoiser yet."""
    if denoiser.spec.attention == "causal":
        return ["judging", "fewstep convert"], ["distillation, before it is converted"]
    return in_words(denoiser.capabilities)


def _mask_source(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None, options: Mapping[str, Any], mask_id: int
) -> str:
    """Who says which token is the mask: the first of those that families ask in this order."""
    config = checkpoint.config
    if options.get("mask_id") is not None:
        return "as you set it"
    if mask_id in (config.get("mask_token_id"), (config.get("fewstep") or {}).get("mask_id")):
        return "config.json"
    if tokenizer is not None and mask_id == tokenizer.mask_token_id:
        return f"the tokenizer's mask token, {tokenizer.mask_token}"
    if tokenizer is not None and mask_id < len(tokenizer):
        return f"the token {tokenizer.convert_ids_to_tokens(mask_id)} of the tokenizer, as the releases have it"
    return RELEASED


def _block_source(checkpoint: Checkpoint, options: Mapping[str, Any], size: int | None) -> str | None:
    """Who says how large blocks are, in the order in which it is asked for."""
    config, family = checkpoint.config, checkpoint.family
    if size is None:
        return None
    if options.get("block_size") is not None:
        return "as you set it"
    if size in ((config.get("fewstep") or {}).get("block_size"), *(config.get(key) for key in BLOCK_KEYS)):
        return "config.json"
    if isinstance(family, LanguageFamily) and size == family.named_block_size(checkpoint):
        return "the checkpoint's name"
    return RELEASED


def _warnings(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None, spec: DenoiserSpec, unread: tuple[str, ...]
) -> list[str]:
    found = []
    if tokenizer is None:
        found.append("no tokenizer is to be had here: set teacher.tokenizer")
    elif len(tokenizer) < spec.vocabulary:
        rows = spec.vocabulary - len(tokenizer)
        found.append(f"{rows} of {spec.vocabulary} rows are no token of the tokenizer, and never drawn")
    said = checkpoint.config.get("eos_token_id")
    if tokenizer is not None and said is not None and tokenizer.eos_token_id not in _as_list(said):
        found.append(f"config.json ends texts with {said}, the tokenizer with {tokenizer.eos_token_id}, which is used")
    if unread:
        found.append(f"{len(unread)} tensors are not read, such as {unread[0]}")
    if spec.attention == "causal":
        found.append("it is autoregressive, a judge but no teacher: fewstep convert makes it one")
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
