"""Attention in blocks by tiles against masks with an entry for each query and key."""

import itertools

import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_mask

from teachers import attention, visibility
from teachers.canvas import Canvas, Context, places
from teachers.errors import UserError
from teachers.families import load_denoiser
from teachers.masks import block_numbers, visible_in_context
from teachers.masks import visibility as visible_in
from teachers.prefix import doubled, split
from teachers.visibility import Visibility
from tests.teachers.test_context import BLOCKS, DOCUMENTS, MASK, L, denoiser, noise, text

TILE = 4
CPU = torch.device("cpu")
REAL = torch.tensor([[0] * 5 + [1] * 7, [1] * 9 + [0] * 3, [1] * 12]).bool()
PACKED = block_numbers(places(DOCUMENTS), 3)
CONTEXTS = {
    "documents": Context(DOCUMENTS),
    "blocks": Context(blocks=BLOCKS),
    "blocks of documents": Context(DOCUMENTS, blocks=PACKED),
    "clean text beside blocks": Context(blocks=BLOCKS, clean=text()),
    "clean text beside blocks of documents": Context(DOCUMENTS, blocks=PACKED, clean=text()),
}


def blocks_of(tokens, clean, size=3):
    return split(Canvas.of(tokens, MASK), clean, size)


def seen():
    """Name → visibility of 3 rows, or of rows that are alike."""
    yield "causal", visible_in("causal", 10)
    yield "blocks", visible_in("block", 11, block_size=3)
    yield "blocks beside padding", visible_in("block", L, block_size=3, padding=REAL)
    yield "a block a tile", visible_in("block", 16, block_size=TILE)
    for (name, context), real in itertools.product(CONTEXTS.items(), (None, REAL)):
        visible = visible_in_context(context, L, CPU, real)
        assert isinstance(visible, Visibility)
        yield name if real is None else f"{name}, padded", visible
    yield "prefix", doubled(blocks_of(noise(text()), text()), False).seen
    some = blocks_of(noise(text()), text()).rows(torch.tensor([0, 1, 3, 6, 7, 9]))
    yield "prefix of some", doubled(some, False).seen


SEEN = dict(seen())


def listed(counts, indices):
    """(B, Q, K) bool, the tiles that are listed."""
    tiles = torch.zeros(*indices.shape[:1], *indices.shape[2:], dtype=torch.bool)
    for row, query in itertools.product(range(len(counts)), range(counts.shape[2])):
        tiles[row, query, indices[row, 0, query, : counts[row, 0, query]].long()] = True
    return tiles


@pytest.mark.parametrize("name", SEEN)
def test_tiles_hold_what_is_visible(name, monkeypatch):
    monkeypatch.setattr(visibility, "TILE", TILE)
    dense, tiles = SEEN[name].dense(), SEEN[name].tiled()
    rows, length = len(dense), dense.shape[-1]
    # 1. entry by entry
    assert torch.equal(create_mask(tiles.mask_mod, rows, 1, length, length, "cpu"), dense)
    # 2. tile by tile: what is left out has nothing visible, what is whole nothing else
    missing = -length % TILE
    padded = torch.nn.functional.pad(dense[:, 0], (0, missing, 0, missing))
    entries = padded.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE)).transpose(2, 3).flatten(3)
    partly = listed(tiles.kv_num_blocks, tiles.kv_indices)
    whole = listed(tiles.full_kv_num_blocks, tiles.full_kv_indices)
    assert not (partly & whole).any()
    assert torch.equal(whole, entries.all(-1))
    assert not (entries.any(-1) & ~partly & ~whole).any()
    if name in ("causal", "blocks", "a block a tile", "clean text beside blocks", "prefix"):
        assert not (partly & ~entries.any(-1)).any(), "nothing is computed in vain"


def flexed(model):
    model.use_flex_attention()
    assert model.flex
    return model


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_networks_say_the_same_by_tiles(family):
    model = denoiser(family, attention="block", block_size=3)
    tokens, clean = noise(text()), text()
    canvases = [
        Canvas.of(tokens, MASK),
        Canvas.of(tokens, MASK, REAL),
        *(Canvas(tokens, tokens == MASK, context=context) for context in CONTEXTS.values()),
        blocks_of(tokens, clean),
        blocks_of(tokens, clean).rows(torch.tensor([0, 5, 6, 11])),
    ]
    dense = [model.log_probs(canvas) for canvas in canvases]
    for canvas, expected in zip(canvases, dense, strict=True):
        read, real = flexed(model).log_probs(canvas), slice(None) if canvas.real is None else canvas.real
        torch.testing.assert_close(read[real], expected[real], atol=1e-5, rtol=0)


def test_a_diffusion_transformer_says_the_same_by_tiles():
    model = load_denoiser("tests/golden/bd3lm/checkpoint").requires_grad_(False)
    size, mask = model.spec.block_size, model.spec.mask_id
    assert size is not None
    clean = torch.randint(0, mask, (2, 3 * size), generator=torch.Generator().manual_seed(0))
    tokens = torch.where(torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) < 0.5, mask, clean)
    canvases = [split(Canvas.of(tokens, mask), clean, size), Canvas.of(tokens, mask)]
    dense = [model.log_probs(canvas) for canvas in canvases]
    for canvas, expected in zip(canvases, dense, strict=True):
        torch.testing.assert_close(flexed(model).log_probs(canvas), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_by_tiles(checkpointing, monkeypatch):
    """On a CPU torch refuses flex attention a gradient, though it has the mathematics of one."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model = denoiser("qwen3", attention="block", block_size=3).requires_grad_(True)
    if checkpointing:
        model.checkpoint_activations()
    tokens, clean = noise(text()), text()
    canvas, gradients = blocks_of(tokens, clean), []
    for _ in range(2):
        loss = model.log_probs(canvas)[..., :MASK].square().mean()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        flexed(model)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_has_no_tiles_is_computed_as_before():
    """To the bit: full attention, padding, and tokens that are opened one by one."""
    model, tokens = denoiser(), noise(text())
    opened = torch.rand(3, L, L, generator=torch.Generator().manual_seed(3)) < 0.3
    canvases = [
        Canvas.of(tokens, MASK),
        Canvas.of(tokens, MASK, REAL),
        Canvas(tokens, tokens == MASK, context=Context(DOCUMENTS, opened)),
    ]
    before = [model.log_probs(canvas) for canvas in canvases]
    for canvas, expected in zip(canvases, before, strict=True):
        assert torch.equal(flexed(model).log_probs(canvas), expected)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"], ids=["eager", "a mask must be a tensor"])
def test_an_attention_of_its_own_is_refused(family):
    model = denoiser(family, attention="block", block_size=3)
    if family == "qwen3":
        model.model.set_attn_implementation("eager")
    with pytest.raises(UserError, match=r"leave train\.flex_attention out"):
        model.use_flex_attention()
    assert not model.flex
    assert model.log_probs(Canvas.of(text(), MASK)).shape[1] == L, "and it goes on without"


def test_heads_may_share_keys():
    queries, keys = torch.randn(2, 4, 8, 6), torch.randn(2, 2, 8, 6)
    tiles, dense = visible_in("block", 8, block_size=2).tiled(), visible_in("block", 8, block_size=2).dense()
    expected = attention.attention(queries, keys, keys, dense, 0.3)
    torch.testing.assert_close(attention.attention(queries, keys, keys, tiles, 0.3), expected)
