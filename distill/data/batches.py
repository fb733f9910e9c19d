"""What training is given: the data of a config, and of them the rows of an update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig
from distill.data.corpus import Corpus, TrajectoryCorpus, load_corpus
from distill.data.prompted import PromptedCorpus, load_prompted
from teachers.canvas import Batch, Canvas

Data = Corpus | PromptedCorpus
"""What a config's ``data`` section names."""
Rows = Data | TrajectoryCorpus
"""What is trained on."""


def load_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, path: str | None = None, mask_id: int | None = None
) -> Data:
    """The data of a config, of whichever format.

    Args:
        path: read this instead of ``config.path``, e.g. its held-out file.
        mask_id: the model's, for a tokenizer that calls no token its mask.

    Raises:
        UserError: see `load_corpus` and `load_prompted`.
    """
    load = load_prompted if config.prompted else load_corpus
    return load(config, tokenizer, path, mask_id=mask_id)


def training_batch(
    corpus: Rows | None,
    seed: int,
    positions: Sequence[int],
    length: int,
    mask_id: int,
    device: torch.device | str,
) -> Batch:
    """Rows that are open but at their prompts, with the tokens and the order that a corpus has for them.

    Args:
        corpus: None for objectives that need none.
        positions: of the rows in the order of the run's seed.
        length: L. mask_id: what open positions hold.
    """
    if isinstance(corpus, PromptedCorpus):
        return corpus.batch(seed, positions, mask_id).to(device)
    if corpus is None:
        return Batch(Canvas.blank(len(positions), length, mask_id, device))
    canvas = Canvas.blank(len(positions), length, mask_id)
    rows = corpus.batch(seed, list(positions))
    if isinstance(corpus, Corpus):
        return Batch(canvas, rows).to(device)
    tokens, order = rows.unbind(1)
    written = order >= 0  # prompts are not
    return Batch(Canvas(tokens.masked_fill(written, mask_id), written), tokens, order).to(device)
