"""What is open, what is real, and that padding changes nothing that any family says."""

from dataclasses import fields

import pytest
import torch

from teachers.canvas import Batch, Canvas, Context, Prefix
from teachers.errors import UserError
from teachers.oracle.markov import random_source
from tests.networks import mdlm, shape, stock

MASK = 9
PROMPTS, SUFFIXES = [[3, 4], [5], []], [[], [6, 7], [8]]


def test_blank_rows_are_masks_and_all_open():
    canvas = Canvas.blank(2, 3, MASK)
    assert canvas.tokens.tolist() == [[MASK] * 3] * 2
    assert canvas.open.all()
    assert (canvas.real, canvas.time) == (None, None)
    assert (len(canvas), canvas.length, canvas.device) == (2, 3, torch.device("cpu"))


def test_rows_are_open_where_they_hold_the_mask_and_are_no_padding():
    tokens = torch.tensor([[MASK, 1, MASK], [MASK, MASK, 2]])
    assert torch.equal(Canvas.of(tokens, MASK).open, tokens == MASK)
    real = torch.tensor([[True, True, False], [False, True, True]])
    assert Canvas.of(tokens, MASK, real).open.tolist() == [[True, False, False], [False, True, False]]


def test_prompts_of_different_lengths_in_rows_of_one_length():
    canvas = Canvas.prompted(PROMPTS, 4, MASK, SUFFIXES)
    assert canvas.tokens.tolist() == [[3, 4, MASK, MASK], [5, MASK, 6, 7], [MASK, MASK, MASK, 8]]
    assert torch.equal(canvas.open, canvas.tokens == MASK)
    assert canvas.real is None


@pytest.mark.parametrize("pad_id", [None, 0])
def test_prompts_of_different_lengths_padded(pad_id):
    pad = MASK if pad_id is None else pad_id
    left = Canvas.prompted(PROMPTS, 2, MASK, SUFFIXES, pad_id, "left")
    rows = [[3, 4, MASK, MASK], [5, MASK, MASK, 6, 7], [MASK, MASK, 8]]
    assert left.tokens.tolist() == [[pad] * (5 - len(row)) + row for row in rows]
    right = Canvas.prompted(PROMPTS, 2, MASK, SUFFIXES, pad_id, "right")
    assert right.tokens.tolist() == [row + [pad] * (5 - len(row)) for row in rows]
    for canvas in (left, right):
        assert canvas.open.sum(1).tolist() == [2, 2, 2]
        assert canvas.real.sum(1).tolist() == [4, 5, 3]
        assert (canvas.tokens[canvas.open] == MASK).all()
        assert not (canvas.open & ~canvas.real).any()


def test_rows_of_one_length_need_no_padding():
    assert Canvas.prompted([[1], [2]], 3, MASK, padding="left").real is None


def test_a_prompt_that_fills_the_row_is_refused():
    with pytest.raises(UserError, match="prompt 2 has 4 tokens and the canvas 4, which leaves none to write"):
        Canvas.prompted([[1], [1, 2, 3, 4]], 4, MASK)


def test_time_and_positions_do_not_count_padding():
    left, right = (Canvas.prompted(PROMPTS, 2, MASK, SUFFIXES, 0, side) for side in ("left", "right"))
    for canvas in (left, right):
        assert canvas.open_share().tolist() == [2 / 4, 2 / 5, 2 / 3]
        positions = canvas.position_ids()
        assert [positions[row, canvas.real[row]].tolist() for row in range(3)] == [[0, 1, 2, 3], [*range(5)], [0, 1, 2]]
    assert Canvas.blank(1, 2, MASK).position_ids() is None


@pytest.mark.parametrize("part", [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])])
def test_some_of_the_rows_have_all_that_the_whole_has(part):
    canvas = Canvas.prompted(PROMPTS, 2, MASK, SUFFIXES, 0, "left")
    context, prefix = Context(*torch.arange(3 * 4).view(4, 3, 1)), Prefix(*torch.arange(3 * 3).view(3, 3, 1), 3)
    canvas = Canvas(canvas.tokens, canvas.open, canvas.real, torch.rand(3), context, prefix)
    labels = torch.arange(15).view(3, 5)
    some = Batch(canvas, labels).rows(part)
    assert len(some) == 2
    assert some.order is None
    assert torch.equal(some.labels, labels[1:])
    parts = (canvas, some.canvas), (context, some.canvas.context), (prefix, some.canvas.prefix)
    for whole, cut in parts:
        for field in fields(whole):
            value = getattr(whole, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(cut, field.name), value[1:])
    assert some.canvas.prefix.texts == (2 if isinstance(part, slice) else None)
    moved = Batch(canvas, labels).to("meta")
    assert {moved.labels.device.type, moved.canvas.real.device.type, moved.canvas.device.type} == {"meta"}


def test_rows_that_are_all_chosen_are_these_themselves():
    canvas = Canvas.blank(3, 2, MASK)
    assert canvas.rows_where(torch.tensor([True, True, True])) is canvas
    assert len(canvas.rows_where(torch.tensor([True, False, True]))) == 2


WIDE = shape(initializer_range=0.3, layers=2)  # large weights, so that attention matters
DENOISERS = {
    "stock": lambda: stock(10, 8, MASK, sizes=WIDE),
    "shifted": lambda: stock(10, 8, MASK, sizes=WIDE, shift=True),
    "block": lambda: stock(10, 8, MASK, sizes=WIDE, attention="block", block_size=2),
    "shifted block": lambda: stock(10, 8, MASK, sizes=WIDE, attention="block", block_size=2, shift=True),
    "causal": lambda: stock(10, 8, MASK, sizes=WIDE, attention="causal", shift=True),
    "mdlm": lambda: mdlm(10, 8),
    "mdlm with time": lambda: mdlm(10, 8, time_conditioned=True),
    "markov": lambda: random_source(9, 2, 1.5, 0, 8),
}


@pytest.mark.parametrize("family", DENOISERS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_are_answered_as_they_are_alone(family, side):
    denoiser = DENOISERS[family]()
    canvas = Canvas.prompted(PROMPTS, 3, MASK, SUFFIXES, 0, side)
    together = denoiser.log_probs(canvas)
    for row, (prompt, suffix) in enumerate(zip(PROMPTS, SUFFIXES, strict=True)):
        alone = denoiser.log_probs(Canvas.prompted([prompt], len(prompt) + 3 + len(suffix), MASK, [suffix]))[0]
        torch.testing.assert_close(together[row, canvas.real[row]], alone, rtol=0, atol=1e-5)
    assert torch.equal(denoiser.head(denoiser.features_at(canvas, canvas.open)), together[canvas.open])
    other = Canvas(canvas.tokens.masked_fill(~canvas.real, 2), canvas.open, canvas.real)
    torch.testing.assert_close(denoiser.log_probs(other)[canvas.real], together[canvas.real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["stock", "shifted", "block", "mdlm"])
@torch.no_grad()
def test_padding_that_is_not_said_to_be_any_is_seen(family):
    """The test above would pass if padding were far off, or networks deaf."""
    denoiser = DENOISERS[family]()
    canvas = Canvas.prompted(PROMPTS, 3, MASK, SUFFIXES, 0, "left")
    said, unsaid = denoiser.log_probs(canvas), denoiser.log_probs(Canvas(canvas.tokens, canvas.open))
    assert (said - unsaid)[canvas.open][:, :MASK].abs().max() > 1e-3
