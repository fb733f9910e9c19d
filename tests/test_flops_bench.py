"""The formula of the FLOPs of a pass, against torch's own count of what is computed."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.expect import Model
from benchmarks.flops import Blocks, FlopMeter
from benchmarks.shapes import Size
from students.adapters import AdaptedDenoiser, AdapterConfig
from teachers.canvas import Canvas

SIZE = Size("llama", 32, 3, 4, vocabulary=300, length=24, inner=48)
ROWS = 5


def counted(denoiser, rows=ROWS):
    """FLOPs of a forward and, where something trains, a backward pass with half of the positions at the head."""
    canvas = Canvas.blank(rows, SIZE.length, denoiser.spec.mask_id)
    select = (torch.arange(SIZE.length) % 2 == 0).expand(rows, -1)
    meter = FlopMeter()
    # the plain kernel: torch counts what is computed again in others' backward passes
    with (
        meter.watching(),
        FlopCounterMode(display=False) as theirs,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        out = denoiser.head(denoiser.features(canvas, select))
        if out.requires_grad:
            out.logsumexp(-1).sum().backward()
    return meter.total, theirs.get_total_flops()


def test_passes_over_blocks_read_the_clean_text_as_well():
    blocks = Blocks(2, 8, 100, 0)
    whole, beside = (Model({}, {}, blocks, 8, 10, size) for size in (None, 4))
    head = 3 * 16 * 8 * 10
    assert whole.forward(3, 16) == blocks.forward(3, 16) + head
    assert beside.forward(3, 16) == blocks.forward(3, 16 + 12) + head  # nothing reads the last block's clean text


@pytest.mark.parametrize("family", ["llama", "mdlm"])
def test_a_pass_without_gradient(family):
    ours, theirs = counted(replace(SIZE, family=family).network())
    assert theirs > 0
    assert ours == pytest.approx(theirs, rel=0.02 if family == "mdlm" else 1e-9)  # conditioning is left out


@pytest.mark.parametrize("family", ["llama", "mdlm"])
def test_a_pass_whose_weights_train(family):
    ours, theirs = counted(replace(SIZE, family=family).network().requires_grad_(True))
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours > 2.9 * counted(replace(SIZE, family=family).network())[0]


def test_adapters_train_and_the_base_does_not():
    base = SIZE.network()
    adapted = AdaptedDenoiser(base, AdapterConfig(rank=4))
    ours, theirs = counted(adapted)
    # below the first adapter nothing is asked for a gradient
    assert theirs <= ours <= 1.1 * theirs
    blocks = Blocks.of(base)
    assert (blocks.layers, blocks.width) == (3, 32)
    assert blocks.trained == sum(p.numel() for p in adapted.parameters())
    assert blocks.frozen == 3 * (4 * 32 * 32 + 3 * 32 * 48)


def test_what_is_computed_again_is_not_counted_twice():
    network = SIZE.network().requires_grad_(True)
    once = counted(network)[0]
    network.checkpoint_activations()
    again, theirs = counted(network)
    assert again == once
    assert theirs > 1.2 * once
