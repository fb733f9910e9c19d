"""What tokens look at in training: masks against brute force, and one pass against the separate ones it stands for."""

import itertools
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from teachers.canvas import Canvas, Context, places
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.denoiser import StockDenoiser
from teachers.masks import additive, block_numbers, visible_in_context
from tests.networks import shape

V, L, MASK, EOS = 11, 12, 10, 0
SHAPES = {
    "qwen3": shape(32, 2, tie_word_embeddings=False),
    "llama": shape(32, 2, tie_word_embeddings=False),
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},  # learned positions
}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 3 + [2] * 4, [0] * 12, [0] + [1] * 7 + [2] * 4])
BLOCKS = block_numbers(places(torch.zeros_like(DOCUMENTS)), 3)


def denoiser(family="qwen3", **spec):
    torch.manual_seed(0)
    sizes = SHAPES[family] | {"vocab_size": V, "max_position_embeddings": L, "initializer_range": 0.3}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    values = {"mask_id": MASK, "vocabulary": V, "max_length": L, "eos_id": EOS, **spec}
    return StockDenoiser(model, DenoiserSpec(**values)).requires_grad_(False)


def text(seed=1, rows=3):
    return torch.randint(0, V - 1, (rows, L), generator=torch.Generator().manual_seed(seed))


def noise(x0, seed=2):
    masked = torch.rand(x0.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(masked, MASK, x0)


def canvas_of(tokens, **context):
    return Canvas(tokens, tokens == MASK, context=Context(**context) if context else None)


def log_probs(model, tokens, **context):
    return model.log_probs(canvas_of(tokens, **context))


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def same(one, other):
    """As close as if masks were absent too, which is not the case of these networks."""
    return bool((one - other)[..., :MASK].abs().max() < 1e-4)


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("kind", ["full", "annealed", "block", "doubled"])
def test_masks_against_brute_force(kind, documents):
    opened = torch.rand(3, L, L, generator=torch.Generator().manual_seed(3)) < 0.3 if kind == "annealed" else None
    blocks = None
    if kind in ("block", "doubled"):
        place = torch.arange(L).expand(3, L) if documents is None else places(documents)
        blocks = block_numbers(place, 3)
    context = Context(documents, opened, blocks, text() if kind == "doubled" else None)
    seen = visible_in_context(context, L, torch.device("cpu"))
    mask = additive(seen if isinstance(seen, torch.Tensor) else seen.dense(), torch.float32)
    width = 2 * L if kind == "doubled" else L
    assert set(mask.unique().tolist()) == ({0.0, torch.finfo(torch.float32).min} if (mask != 0).any() else {0.0})
    visible = (mask == 0).expand(3, 1, width, width)
    numbers = torch.zeros_like(DOCUMENTS) if documents is None else documents
    for row, query, key in itertools.product(range(3), range(width), range(width)):
        q, k = query % L, key % L
        expected = bool(numbers[row, q] == numbers[row, k])
        if kind == "annealed":
            expected &= k <= q or bool(opened[row, q, k])
        elif kind in ("block", "doubled"):
            # blocks are counted anew in each document
            start = [int((numbers[row] < numbers[row, place]).sum()) for place in (q, k)]
            own, its = (q - start[0]) // 3, (k - start[1]) // 3
            if kind == "block":
                expected &= its <= own
            elif query < L:
                expected &= its == own if key < L else its < own
            else:
                expected &= key >= L and its <= own
        assert bool(visible[row, 0, query, key]) == expected, (row, query, key)


def test_places_and_blocks_begin_again_in_each_document():
    assert places(DOCUMENTS).tolist() == [
        [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3],
        list(range(12)),
        [0, *range(7), *range(4)],
    ]
    assert block_numbers(places(DOCUMENTS), 3)[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4]


# --- annealed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("shift", [False, True])
def test_an_annealed_mask_goes_from_causal_to_full(family, shift):
    full, causal = denoiser(family, shift=shift), denoiser(family, shift=shift, attention="causal")
    z = noise(text())
    closed, opened = (torch.full((3, L, L), value) for value in (False, True))
    expected_causal, expected_full = log_probs(causal, z), log_probs(denoiser(family, shift=shift), z)
    close(log_probs(full, z, opened=closed), expected_causal)
    close(log_probs(full, z, opened=opened), expected_full)
    assert not same(expected_causal, expected_full)
    half = torch.rand(3, L, L, generator=torch.Generator().manual_seed(0)) < 0.5
    between = log_probs(full, z, opened=half)
    assert not same(between, expected_causal)
    assert not same(between, expected_full)


# --- documents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("attention", ["full", "block"])
def test_a_packed_row_says_what_its_documents_say_alone(attention, shift, family):
    block_size = 2 if attention == "block" else None
    model = denoiser(family, shift=shift, attention=attention, block_size=block_size)
    z = noise(text())
    blocks = None if block_size is None else block_numbers(places(DOCUMENTS), block_size)
    packed = log_probs(model, z, documents=DOCUMENTS, blocks=blocks)
    for row, number in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2)):
        inside = DOCUMENTS[row] == number
        close(packed[row, inside], log_probs(model, z[row : row + 1, inside])[0])
    if attention == "full":
        assert not same(packed, log_probs(model, z))


# --- doubled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 12])
def test_a_doubled_canvas_is_a_pass_for_each_block(size, shift, family):
    model = denoiser(family, shift=shift, attention="block", block_size=size)
    x0 = text()
    z = noise(x0)
    blocks = block_numbers(places(torch.zeros_like(z)), size)
    together = log_probs(model, z, blocks=blocks, clean=x0)
    for block in range(L // size):
        # what is before it is text, what is after it anything
        apart = torch.where(blocks < block, x0, torch.where(blocks == block, z, 7))
        inside = blocks[0] == block
        close(together[:, inside], log_probs(model, apart)[:, inside])
    if size < L:
        assert not same(together, log_probs(model, z))


def test_a_doubled_canvas_of_packed_documents():
    model = denoiser(shift=True, attention="block", block_size=2)
    x0 = text()
    z, blocks = noise(x0), block_numbers(places(DOCUMENTS), 2)
    together = log_probs(model, z, documents=DOCUMENTS, blocks=blocks, clean=x0)
    for row, number in ((0, 0), (0, 1), (0, 2), (2, 1)):
        inside = DOCUMENTS[row] == number
        own = z[row : row + 1, inside]
        numbers = block_numbers(places(torch.zeros_like(own)), 2)
        alone = log_probs(model, own, blocks=numbers, clean=x0[row : row + 1, inside])
        close(together[row, inside], alone[0])


def test_what_is_written_in_a_block_is_not_seen_in_its_clean_copy():
    """A position that read its own token in the clean text would learn to copy it."""
    model = denoiser(attention="block", block_size=4)
    x0 = text()
    z, blocks = torch.full_like(x0, MASK), block_numbers(places(torch.zeros_like(x0)), 4)
    other = x0.clone()
    other[:, 4:8] = (other[:, 4:8] + 1) % (V - 1)
    one, two = (log_probs(model, z, blocks=blocks, clean=clean) for clean in (x0, other))
    close(one[:, :8], two[:, :8])
    assert not same(one[:, 8:], two[:, 8:])


# --- canvases ------------------------------------------------------------------------------------------------------


def test_rows_of_a_canvas_keep_their_context():
    opened = torch.rand(3, L, L) < 0.5
    canvas = canvas_of(noise(text()), documents=DOCUMENTS, opened=opened)
    part = canvas.rows(slice(1, 3))
    assert torch.equal(part.context.documents, DOCUMENTS[1:])
    assert torch.equal(part.context.opened, opened[1:])
    assert part.context.blocks is None
    assert canvas.to("cpu").context.documents is not None
    close(denoiser().log_probs(part), denoiser().log_probs(canvas)[1:])


def test_equal_rows_of_different_contexts_share_no_pass():
    model, z = denoiser(), torch.full((3, L), MASK)
    canvas = canvas_of(z, documents=DOCUMENTS)
    close(model.head(model.features_at(canvas, canvas.open)), log_probs(model, z, documents=DOCUMENTS).flatten(0, 1))


# --- padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kind", ["annealed", "block", "doubled"])
def test_a_padded_row_says_in_its_context_what_it_says_alone(kind, shift, side):
    """Blocks begin at a row's first real token, however much padding there is, and nobody reads that."""
    model = denoiser(shift=shift, attention="full" if kind == "annealed" else "block",
                     block_size=None if kind == "annealed" else 3)  # fmt: skip
    x0 = text()
    opened = torch.rand(3, L, L, generator=torch.Generator().manual_seed(3)) < 0.5
    real = torch.ones(3, L, dtype=torch.bool)
    for row, pads in enumerate((0, 2, 5)):
        real[row, slice(0, pads) if side == "left" else slice(L - pads, L)] = False
    z = noise(x0)
    canvas = Canvas(z, (z == MASK) & real, real)
    context = context_of(kind, canvas.position_ids(), opened, x0)
    together = model.log_probs(replace(canvas, context=context))
    for row in range(3):
        own = real[row]
        alone = Canvas(z[row : row + 1, own], (z == MASK)[row : row + 1, own])
        place = torch.arange(int(own.sum()))[None]
        context = context_of(kind, place, opened[row : row + 1, own][:, :, own], x0[row : row + 1, own])
        close(together[row, own], model.log_probs(replace(alone, context=context))[0])


def context_of(kind, place, opened, x0):
    if kind == "annealed":
        return Context(opened=opened)
    return Context(blocks=block_numbers(place, 3), clean=x0 if kind == "doubled" else None)
