"""Blocks on a GPU: sampling them with the exact cache and without, and attention in them by masks and by tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from benchmarks import cache
from benchmarks.on_gpu.fused import compared
from benchmarks.on_gpu.setting import Figures, Job
from benchmarks.shapes import Size
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.prefix import doubled, split


def blocks(job: Job) -> Iterator[tuple[str, Figures]]:
    """Attention, then a part for each fill."""
    yield from attended(job)
    yield from filled(job)


def filled(job: Job) -> Iterator[tuple[str, Figures]]:
    """`benchmarks.cache` at a GPU's size: one part for each fill."""
    for words in job.setting.blocks:
        for one in cache.main(words):
            name = f"{one.shape}, {one.batch} rows of {one.length} in blocks of {one.block}"
            ways = {"cached": one.cached, "without": one.whole}
            figures = {
                f"{way}, {key}": value
                for way, run in ways.items()
                if run is not None
                for key, value in asdict(run).items()
            }
            yield name, {"passes": one.passes, **figures, "same": one.same, "tokens a second": one.tokens_per_second}


def attended(job: Job) -> Iterator[tuple[str, Figures]]:
    """A pass over all blocks of some texts, with its gradient where flex attention has one: not on a CPU."""
    size = job.setting.attended
    dtype = torch.bfloat16 if job.on_gpu else torch.float32
    network = size.network(job.device, dtype).requires_grad_(job.on_gpu)
    network.use_flex_attention()
    for name, canvas in canvases(size, network).items():
        seen = doubled(canvas, shift=False).seen.dense()
        tiles, masks = partial(gradient, network, canvas, True), partial(gradient, network, canvas, False)
        apart = (tiles() - masks()).abs().max() / masks().abs().max()
        figures = compared({"flex": tiles, "dense": masks}, job)
        yield f"attention, {name}", figures | {"mask, MB": seen.numel() * dtype.itemsize / 2**20, "apart": float(apart)}


def canvases(size: Size, network: Denoiser) -> dict[str, Canvas]:
    """Texts with all their blocks, which have one mask, and texts of which one lacks a block, which have one each."""
    assert size.block is not None
    text = torch.randint(0, size.vocabulary, (size.batch, size.length), generator=torch.Generator().manual_seed(0))
    text = text.to(network.device)
    blank = Canvas.blank(size.batch, size.length, network.spec.mask_id, network.device)
    whole = split(blank, text, size.block)
    return {"whole texts": whole, "a block less": whole.rows(slice(1, None))}


def gradient(network: Denoiser, canvas: Canvas, flex: bool) -> Tensor:
    """Of the first block's weights, in one row; on a CPU the states."""
    network.flex = flex
    states = network.hidden_states(canvas)
    if not states.requires_grad:
        return states.float()
    weights = list(network.blocks()[0].parameters())
    return torch.cat([part.flatten().float() for part in torch.autograd.grad(states.float().square().mean(), weights)])
