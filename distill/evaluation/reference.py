"""Held-out real text, for figures of models to be read beside, and prompts to write after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, DistillConfig, apply_override, validate
from distill.data.batches import Data, load_data
from distill.data.corpus import Corpus
from distill.evaluation.texts import Texts
from teachers.canvas import Canvas


@dataclass(frozen=True)
class HeldOut:
    """What is held out of the data.

    Attributes:
        rows: (N, L) real text, none twice; None where there are prompts alone.
        prompts: canvases, one for each sample, the first N of them of the rows; None for text without prompts.
        others: real text to compare texts with, as many rows that are none of these; None where there is too little.
    """

    rows: Tensor | None = None
    prompts: Canvas | None = None
    others: HeldOut | None = None

    def texts(self, ends: Sequence[int]) -> Texts | None:
        """The real rows, of which after prompts their completions are measured; None where there is none.

        Args:
            ends: (E,) the tokens that end a text.
        """
        if self.rows is None:
            return None
        return Texts.on(None if self.prompts is None else self.prompts.rows(slice(0, len(self.rows))), self.rows, ends)


def reference_text(config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> DataConfig | None:
    """Where held-out real text is for a distillation's evaluation; None where there is no text at all."""
    name, text = config.evaluate.data, config.data
    if name is None:
        return text
    shape = text or heldout_text(name, config.sequence_length, tokenizer)
    return shape.model_copy(update={"path": name, "heldout": name})


def heldout_text(
    path: str, length: int, tokenizer: PreTrainedTokenizerBase, overrides: Sequence[str] = ()
) -> DataConfig:
    """Data that no config describes: a tokenizer without an end-of-text token is one whose texts are whole rows.

    Args:
        overrides: ``key=value`` of `DataConfig`, which say what a row is, such as ``format=prompt_completion``.

    Raises:
        UserError: one of them is a mistake.
    """
    values: dict[str, Any] = {"path": path, "heldout": path, "length": length}
    for override in overrides:
        apply_override(DataConfig, values, override)
    if values.get("format", "text") == "text":
        values.setdefault("pack", tokenizer.eos_token_id is not None)
    return validate(DataConfig, values)


def held_out(
    text: DataConfig, seed: int, samples: int, length: int, tokenizer: PreTrainedTokenizerBase, mask_id: int
) -> HeldOut:
    """Held-out rows, at most ``samples``, none twice; and so many prompts, which come again where there are fewer.

    As many rows once more are the others, or where there are fewer, half as many at least.

    Args:
        mask_id: what is to be written after a prompt holds it.

    Raises:
        UserError: see `load_data`.
    """
    text = text.model_copy(update={"length": length})
    if text.heldout is not None:
        data = load_data(text, tokenizer, text.heldout, mask_id)
    else:
        data = load_data(text, tokenizer, mask_id=mask_id).split(text.heldout_fraction)[1]
    more = range(samples, min(2 * samples, data.rows))
    others = _rows(data, seed, more, mask_id) if 2 * len(more) >= samples else None
    if isinstance(data, Corpus):
        return replace(_rows(data, seed, range(min(samples, data.rows)), mask_id), others=others)
    return replace(_rows(data, seed, range(samples), mask_id), others=others)


def _rows(data: Data, seed: int, positions: range, mask_id: int) -> HeldOut:
    if isinstance(data, Corpus):
        return HeldOut(data.batch(seed, positions))
    batch = data.batch(seed, positions, mask_id)
    return HeldOut(None if batch.labels is None else batch.labels[: data.rows], batch.canvas)
