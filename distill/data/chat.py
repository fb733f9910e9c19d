"""Conversations as text: what the tokenizer's chat template makes of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from teachers.errors import UserError
from teachers.source import reason

Message = dict[str, Any]
"""Its role and its content, and whatever else a template reads."""


def opened(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], place: str) -> str:
    """A conversation with the words in which the assistant's turn begins, or up to where that goes on.

    Args:
        place: where it stands, for messages.

    Raises:
        UserError: the tokenizer has no chat template, or one that fails.
    """
    begun = messages[-1]["role"] == "assistant"
    return rendered(tokenizer, messages, place, add_generation_prompt=not begun, continue_final_message=begun)


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], place: str, **how: Any) -> str:
    """A conversation in the template's words; arguments and errors as of `opened`.

    Args:
        how: of `apply_chat_template`.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{place} holds messages, but the tokenizer has no chat template; give one that has, or prompts and "
            "completions as text"
        )
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **how)
    except Exception as error:  # a template is a program of its own, and says what it likes
        raise UserError(
            f"{place}: the tokenizer's chat template fails ({reason(error)}); mend the row or the template"
        ) from error
    assert isinstance(text, str)  # of one conversation
    return text
