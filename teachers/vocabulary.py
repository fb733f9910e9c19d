"""Tokenizers as they lie in a folder, and whether one is a model's own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from teachers.errors import UserError
from teachers.quiet import quiet_transformers


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; never remote code. Transformers raises whatever it likes."""
    with quiet_transformers(), warnings.catch_warnings():  # the config.json beside it may be one it does not know
        warnings.simplefilter("ignore", FutureWarning)
        # said outright, because transformers would ask on the terminal
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def token_id(tokenizer: PreTrainedTokenizerBase, role: Literal["mask", "eos", "pad"]) -> int | None:
    """The entry that plays a role, None where the tokenizer has none; transformers declares no type of its own."""
    entry: Any = getattr(tokenizer, f"{role}_token_id")
    return entry


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
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id != mask_id:
        raise UserError(
            f"the tokenizer's mask token is {tokenizer.mask_token_id} but model {name!r} uses {mask_id}; "
            "give the model's own tokenizer, or set mask_id"
        )
