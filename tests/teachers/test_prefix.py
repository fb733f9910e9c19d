"""Blocks behind clean text: one pass over [x_t ⊕ x₀] against canvases that end with the block, and exact laws."""

from dataclasses import replace

import pytest
import torch

from students.adapters import AdaptedDenoiser, AdapterConfig
from teachers.canvas import Canvas
from teachers.families import load_denoiser
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.markov import Markov
from teachers.prefix import doubled, split
from tests.networks import mdlm
from tests.teachers.test_context import MASK, L, V, denoiser, noise, text

ROWS, SIZE = 3, 3
BLOCKS = L // SIZE


def whole(tokens, clean, block, size=SIZE, end=None):
    """Each text up to a block: clean before it, masks behind it."""
    row = clean.clone()
    row[:, block * size : (block + 1) * size] = tokens[:, block * size : (block + 1) * size]
    row[:, (block + 1) * size :] = MASK
    return row[:, : (block + 1) * size if end is None else end]


def expected(model, tokens, clean, size=SIZE, end=None):
    """(B · N, size, V) block by block, each in a pass of its own."""
    parts = []
    for block in range(L // size):
        row = whole(tokens, clean, block, size, end)
        log_probs = model.log_probs(Canvas.of(row, MASK))
        parts.append(log_probs[:, block * size : (block + 1) * size])
    return torch.stack(parts, 1).flatten(0, 1)


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("shift", [False, True], ids=["own place", "shift"])
def test_all_blocks_in_one_pass_equal_each_in_its_own(family, shift):
    model = denoiser(family, attention="block", block_size=SIZE, shift=shift)
    clean = text()
    tokens = noise(clean)
    blocks = split(Canvas.of(tokens, MASK), clean, SIZE)
    close(model.log_probs(blocks), expected(model, tokens, clean))
    # without what is behind the noise: the clean text changes the answer, and only that of later blocks
    other = clean.clone()
    other[:, SIZE] = (other[:, SIZE] + 1) % MASK
    apart = (model.log_probs(split(Canvas.of(tokens, MASK), other, SIZE)) - model.log_probs(blocks)).abs()
    moved = apart[..., :MASK].amax((1, 2)).view(ROWS, BLOCKS)
    assert bool((moved[:, :2] < 1e-5).all())
    assert bool((moved[:, 2:] > 1e-4).all())


@pytest.mark.parametrize("size", [1, 2, 6, 12])
def test_blocks_of_every_size(size):
    model = denoiser(attention="block", block_size=size)
    clean = text()
    tokens = noise(clean)
    close(model.log_probs(split(Canvas.of(tokens, MASK), clean, size)), expected(model, tokens, clean, size))


def test_only_the_asked_blocks_are_read():
    """Rows in any order, a block twice, and texts of which few blocks are asked."""
    model = denoiser(attention="block", block_size=SIZE)
    clean = text()
    tokens = noise(clean)
    blocks, answers = split(Canvas.of(tokens, MASK), clean, SIZE), expected(model, tokens, clean)
    part = torch.tensor([7, 2, 2, 9, 0])
    close(model.log_probs(blocks.rows(part)), answers[part])
    read = doubled(blocks.rows(torch.tensor([4, 1])), shift=False)
    assert read.tokens.shape == (2, SIZE + SIZE)  # a block of each text, and no clean text behind the first one
    select = torch.zeros_like(blocks.open)
    select[5, 1] = select[8, :2] = True
    close(model.log_probs(blocks, select), answers[select])
    assert model.log_probs(blocks, torch.zeros_like(select)).shape == (0, V)


def test_a_slice_of_whole_texts_is_whole():
    clean = text()
    blocks = split(Canvas.of(noise(clean), MASK), clean, SIZE)
    index = torch.arange(len(blocks))
    each = blocks.rows(index.repeat_interleave(2), whole=True)
    for canvas, rows in ((blocks, BLOCKS), (each, 2 * BLOCKS)):
        assert canvas.rows(slice(0, None)).prefix.texts == ROWS
        assert canvas.rows(slice(rows, 3 * rows)).prefix.texts == 2
        assert canvas.rows(slice(1, rows)).prefix.texts is None
        assert canvas.rows(slice(1, rows + 1)).prefix.texts is None
    stacked = blocks.rows(index.repeat(2), whole=True)
    assert stacked.prefix.texts == ROWS
    assert stacked.rows(slice(0, 2 * BLOCKS)).prefix.texts is None  # half of two texts


@pytest.mark.parametrize("order", ["as split", "each twice", "all twice"])
def test_a_pass_is_laid_out_from_shapes_alone_where_texts_are_whole(order):
    """What is known without a look at the values is what the values say."""
    clean = text()
    blocks = split(Canvas.of(noise(clean), MASK), clean, SIZE)
    index = torch.arange(len(blocks))
    index = {"as split": index, "each twice": index.repeat_interleave(2), "all twice": index.repeat(2)}[order]
    known, looked_at = blocks.rows(index, whole=True), blocks.rows(index)
    assert (known.prefix.texts, looked_at.prefix.texts) == (ROWS, None)
    for shift in (False, True):
        ours, theirs = (vars(doubled(canvas, shift)) for canvas in (known, looked_at))
        assert ours.keys() == theirs.keys()
        mask, masks = ours.pop("seen").dense(), theirs.pop("seen").dense()
        assert (len(mask), len(masks)) == (1, ROWS), "one mask for all texts where it is known that they are alike"
        assert torch.equal(mask.expand_as(masks), masks)
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
    model = denoiser(attention="block", block_size=2 * SIZE)  # which reads each block in a pass of its own
    assert torch.equal(model.log_probs(known), model.log_probs(looked_at))


def test_gradients_are_those_of_separate_passes():
    model = denoiser(attention="block", block_size=SIZE).requires_grad_(True)
    clean = text()
    tokens = noise(clean)
    weights = torch.randn(ROWS * BLOCKS, SIZE, V, generator=torch.Generator().manual_seed(5))
    gradients = []
    for log_probs in (
        model.log_probs(split(Canvas.of(tokens, MASK), clean, SIZE)), expected(model, tokens, clean)
    ):  # fmt: skip
        loss = (log_probs[..., :MASK] * weights[..., :MASK]).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_adapter_reads_as_its_base_does():
    base = denoiser(attention="block", block_size=SIZE)
    clean = text()
    tokens = noise(clean)
    answers = expected(base, tokens, clean)
    adapted = AdaptedDenoiser(base, AdapterConfig(rank=2))
    close(adapted.log_probs(split(Canvas.of(tokens, MASK), clean, SIZE)), answers)


@pytest.mark.parametrize("spec", [{}, {"attention": "block", "block_size": 6}], ids=["full", "larger blocks"])
def test_a_network_that_looks_further_reads_masks_behind_a_block(spec):
    model = denoiser(**spec)
    clean = text()
    tokens = noise(clean)
    answers = expected(model, tokens, clean, end=L)
    close(model.log_probs(split(Canvas.of(tokens, MASK), clean, SIZE)), answers)


def test_time_is_the_share_of_the_text_for_a_network_that_reads_all_of_it():
    model = mdlm(V, L, time_conditioned=True)
    clean = text()
    tokens = noise(clean)
    blocks = split(Canvas.of(tokens, MASK, time=torch.tensor([0.1, 0.5, 0.9])), clean, SIZE)
    close(model.log_probs(blocks), expected(model, tokens, clean, end=L))


def test_a_diffusion_transformer_with_blocks():
    folder = "tests/golden/bd3lm/checkpoint"
    model = load_denoiser(folder).requires_grad_(False)
    size, mask = model.spec.block_size, model.spec.mask_id
    clean = torch.randint(0, mask, (2, 3 * size), generator=torch.Generator().manual_seed(0))
    tokens = torch.where(torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) < 0.5, mask, clean)
    read = model.log_probs(split(Canvas.of(tokens, mask), clean, size)).view(2, 3, size, -1)
    for block in range(3):
        here = slice(block * size, (block + 1) * size)
        row = torch.cat([clean[:, : here.start], tokens[:, here]], 1)
        torch.testing.assert_close(read[:, block], model.log_probs(Canvas.of(row, mask))[:, here], atol=1e-4, rtol=0)


def test_the_exact_source_knows_what_is_before_a_block_and_nothing_behind():
    """By enumeration of the block's completions, each weighed with the chain from the text before it."""
    law = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25]], dtype=torch.float64)
    source = SourceDenoiser(Markov(law.log()), 8)
    clean = torch.tensor([[0, 2, 1, 1, 2, 0, 0, 1]])
    tokens = clean.clone()
    tokens[0, 4], tokens[0, 6] = 3, 3
    read = source.log_probs(split(Canvas.of(tokens, 3), clean, 4)).exp()[1]
    # block 1 is "? 0 ? 1" behind a 1
    first = law[1] * law[:, 0]
    third = law[0] * law[:, 1]
    close(read[0, :3], (first / first.sum()).float())
    close(read[2, :3], (third / third.sum()).float())
    last = replace(Canvas.of(tokens, 3), tokens=torch.tensor([[0, 2, 1, 1, 2, 0, 0, 3]]))
    close(source.log_probs(split(last, clean, 4)).exp()[1, 3, :3], law[0].float())
