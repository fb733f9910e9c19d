"""What makes tokens of a corpus with a given tokenizer, and what tells that tokenizer from others."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeGuard

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.data.encoding import Encoder, FastEncoder
from distill.data.tokenizers import PLAIN_TEXT
from teachers.errors import UserError
from teachers.vocabulary import token_id


class SlowEncoder(Encoder):
    """A tokenizer that is not the ``tokenizers`` library's alone: written in Python, or with a call of its own."""

    _how = PLAIN_TEXT

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__({}, list(tokenizer.all_special_tokens))
        self._tokenizer = tokenizer

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder.ids`."""
        return self._tokenizer(texts, **self._how)["input_ids"] if texts else []

    def normalised(self, text: str) -> str:
        """See `Encoder.normalised`."""
        return text


class SlowPromptEncoder(SlowEncoder):
    """The same, to which a special token that a text spells is that token; it can not except the mask."""

    _how: ClassVar[dict[str, Any]] = {"add_special_tokens": False, "verbose": False}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask: str | None):
        super().__init__(tokenizer)
        self._mask = mask

    def ids(self, texts: list[str]) -> list[list[int]]:
        """See `Encoder.ids`.

        Raises:
            ValueError: a text spells the mask.
        """
        if self._mask is not None and any(self._mask in text for text in texts):
            raise ValueError(f"it holds the mask token {self._mask!r}")
        return super().ids(texts)


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, mask_id: int | None = None) -> Encoder:
    """What makes tokens of prompts and completions, those that a prompt of `fewstep generate` has, but never the mask.

    Args:
        mask_id: see `encoder_of`.
    """
    if _is_the_librarys(tokenizer):
        return encoder_of(tokenizer, "tokens", mask_id)
    return SlowPromptEncoder(tokenizer, mask_text(tokenizer, mask_id))


def _is_the_librarys(tokenizer: PreTrainedTokenizerBase) -> TypeGuard[PreTrainedTokenizerFast]:
    """Whether the ``tokenizers`` library alone makes the tokens."""
    kind = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and (kind.__call__, kind._encode_plus) == (
        PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast._encode_plus,
    )  # fmt: skip


def encoder_of(
    tokenizer: PreTrainedTokenizerBase, special_tokens: Literal["text", "tokens"], mask_id: int | None = None
) -> Encoder:
    """What makes tokens of a corpus, those that ``tokenizer(text, **PLAIN_TEXT)`` gives, but never the mask.

    Args:
        special_tokens: see `DataConfig`.
        mask_id: the model's, for a tokenizer that calls no token its mask.

    Raises:
        UserError: special tokens are to be read by a tokenizer that can not except the mask.
    """
    if _is_the_librarys(tokenizer):
        return FastEncoder.of(tokenizer.backend_tokenizer, special_tokens == "tokens", mask_text(tokenizer, mask_id))
    if special_tokens == "tokens":
        raise UserError(
            f"data.special_tokens is 'tokens', which {type(tokenizer).__name__} can not do without the mask; set it to "
            "text, or give a tokenizer of the tokenizers library"
        )
    return SlowEncoder(tokenizer)


def mask_text(tokenizer: PreTrainedTokenizerBase, mask_id: int | None = None) -> str | None:
    """How the mask is spelled; None where no text spells it.

    Args:
        mask_id: the model's, for a tokenizer that calls no token its mask.
    """
    own = token_id(tokenizer, "mask")
    masks = {mask_id if own is None else own}
    return next((str(token) for entry, token in tokenizer.added_tokens_decoder.items() if entry in masks), None)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> str:
    """What tells a tokenizer from others that make other tokens of the same text."""
    if isinstance(encoder, FastEncoder):
        parts = [tokenizers.__version__, encoder.definition, json.dumps(encoder.special)]
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            parts = [transformers.__version__, *(p.read_text("latin-1") for p in sorted(Path(folder).rglob("*.*")))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
