"""What an update of training is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill.data.corpus import Corpus, TrajectoryCorpus
from teachers.canvas import Batch, Canvas


def training_batch(
    corpus: Corpus | TrajectoryCorpus | None,
    seed: int,
    positions: Sequence[int],
    length: int,
    mask_id: int,
    device: torch.device | str,
) -> Batch:
    """Rows that are open everywhere, with the tokens and the order that a corpus has for them.

    Args:
        corpus: None for objectives that need none.
        positions: of the rows in the order of the run's seed.
        length: L. mask_id: what open positions hold.
    """
    canvas = Canvas.blank(len(positions), length, mask_id)
    if corpus is None:
        return Batch(canvas).to(device)
    rows = corpus.batch(seed, list(positions))
    if isinstance(corpus, TrajectoryCorpus):
        return Batch(canvas, *rows.unbind(1)).to(device)
    return Batch(canvas, rows).to(device)
