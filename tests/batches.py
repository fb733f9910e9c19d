"""What objectives are given in tests."""

import torch

from teachers.canvas import Batch, Canvas


def batch_of(objective, real, rows):
    """Rows that are open everywhere, with labels of (B, L), or with labels and order of (B, 2, L), or with neither."""
    length = objective.student.spec.max_length if real is None else real.shape[-1]
    canvas = Canvas.blank(rows, length, objective.student.spec.mask_id)
    if real is None:
        return Batch(canvas)
    assert len(real) == rows
    return Batch(canvas, real) if real.ndim == 2 else Batch(canvas, *real.unbind(1))


def prompted(batch, open_, left=0, right=0, pad=0):
    """The batch with only ``open_`` (B, L) to be written, the rest given, and so much padding on either side."""
    canvas = batch.canvas
    tokens = torch.where(open_, canvas.tokens, batch.labels)
    pads = torch.nn.functional.pad
    real = pads(torch.ones_like(open_), (left, right), value=False) if left or right else None
    labels = pads(batch.labels, (left, right), value=pad)
    order = None if batch.order is None else pads(batch.order.masked_fill(~open_, -1), (left, right), value=-1)
    padded = Canvas(pads(tokens, (left, right), value=pad), pads(open_, (left, right), value=False), real)
    return Batch(padded, labels, order)


def says(denoiser, z, **options):
    """What a denoiser says of rows (B, L), open where they hold its mask: log-probabilities (B, L, V)."""
    return denoiser.log_probs(Canvas.of(z, denoiser.spec.mask_id), **options)
