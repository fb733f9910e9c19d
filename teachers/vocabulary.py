"""Tokenizers as they lie in a folder, and whether one is a model's own."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from teachers.errors import UserError, nearest
from teachers.quiet import quiet_transformers
from teachers.source import read_object

STOCK_CLASSES = {"DreamTokenizer": "Qwen2Tokenizer"}
"""Tokenizer classes that releases bring as code → the stock class that makes the same of the same files."""


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; never remote code. Transformers raises whatever it likes."""
    with quiet_transformers(), warnings.catch_warnings():  # the config.json beside it may be one it does not know
        warnings.simplefilter("ignore", FutureWarning)
        # said outright, because transformers would ask on the terminal
        return _tokenizer_class(folder).from_pretrained(folder, trust_remote_code=False)


def _tokenizer_class(folder: Path) -> Any:
    """What reads a folder's files, where the class that they name would be code of their own."""
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    name = settings.get("tokenizer_class")
    if "auto_map" not in settings or not isinstance(name, str) or hasattr(transformers, name):
        return AutoTokenizer
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast
    return getattr(transformers, STOCK_CLASSES[name]) if name in STOCK_CLASSES else AutoTokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, role: Literal["mask", "eos", "pad"]) -> int | None:
    """The entry that plays a role, None where the tokenizer has none; transformers declares no type of its own."""
    entry: Any = getattr(tokenizer, f"{role}_token_id")
    return entry


NEW_MASK = "<|mask|>"


def set_mask(tokenizer: PreTrainedTokenizerBase, token: str | int | None) -> None:
    """Give a tokenizer a mask token: the one named; or else its own; or else `NEW_MASK`, added where there is none.

    Args:
        token: the text or the id of a special token that it has.

    Raises:
        UserError: it has no such token, or one that texts hold, which a denoiser could never write.
    """
    if token is None:
        if tokenizer.mask_token is None:
            tokenizer.add_special_tokens({"mask_token": NEW_MASK})
        return
    special = {entry.content: key for key, entry in tokenizer.added_tokens_decoder.items()}
    text = token if isinstance(token, str) else tokenizer.convert_ids_to_tokens(token)
    if text not in special:
        what = "an ordinary token, which texts hold" if text in tokenizer.get_vocab() else "no token of the tokenizer"
        raise UserError(
            f"tokenizer.mask {token!r} is {what}{nearest(str(token), list(special))}; name a special token that no "
            "text needs, or leave it out to have one added"
        )
    if text == tokenizer.eos_token:
        raise UserError(f"tokenizer.mask {token!r} is the end-of-text token, which texts hold; name another one")
    tokenizer.add_special_tokens({"mask_token": text})


def ids_of(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that tokens have, ordinary and added ones."""
    return {*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder}


def rows_for(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of a table that has one for every token; more than there are tokens where their ids have gaps."""
    return max(ids_of(tokenizer), default=-1) + 1


def gaps_of(tokenizer: PreTrainedTokenizerBase, vocabulary: int, mask_id: int) -> tuple[tuple[int, int], ...]:
    """The runs of ids, first and one past the last, that a model has and no token of the tokenizer.

    Published models pad their tables: Qwen2.5 has up to 152,064 rows, and its tokenizer 151,665 entries.

    Args:
        mask_id: counts as an entry, whether or not the tokenizer has it.
    """
    known = {mask_id, *ids_of(tokenizer)}
    entries = [-1, *(i for i in range(vocabulary) if i in known), vocabulary]
    return tuple((before + 1, after) for before, after in pairwise(entries) if after > before + 1)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: int, mask_id: int, name: str) -> None:
    """Refuse a tokenizer that can produce tokens the model does not have, or that calls another token the mask.

    Args:
        vocabulary: V of the model called ``name``.
        mask_id: the model's mask, which need not be an entry of the tokenizer.
    """
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries but model {name!r} has {vocabulary}; "
            "give the tokenizer the model was trained with"
        )
    if rows_for(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has ids up to {rows_for(tokenizer) - 1} but model {name!r} only {vocabulary} rows; "
            "give the tokenizer the model was trained with"
        )
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id != mask_id:
        raise UserError(
            f"the tokenizer's mask token is {tokenizer.mask_token_id} but model {name!r} uses {mask_id}; "
            "give the model's own tokenizer, or set mask_id"
        )
