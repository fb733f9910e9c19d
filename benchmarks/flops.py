"""What passes must compute, by a formula: the FLOPs of which a model FLOPs utilisation (MFU) is the rate.

A multiplication and an addition are two. Of a forward pass over R rows of L tokens, with ℓ layers, attention of width
A (all heads together), W weights in the linear layers of the blocks and a head of H × V that is asked at N positions:

    blocks      R L · 2 W       backward: the same for what they read, and again for the weights that train
    attention   R · 4 ℓ L² A    backward: twice that
    head        N · 2 H V       backward: as the blocks

Left out are adapters in passes without a gradient, norms, rotations, softmax, embeddings, draws, conditioning vectors,
the optimiser, and whatever is computed again in a backward pass: MFU counts what the mathematics asks for, not what was
done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from students.adapters import lora_layers
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.families.dit.denoiser import DitDenoiser
from teachers.families.stock.denoiser import StockDenoiser

CONDITIONING = "adaLN_modulation"


@dataclass(frozen=True)
class Blocks:
    """A denoiser's transformer blocks.

    Attributes:
        layers: ℓ. width: A. frozen, trained: W, of weights that do not train and of those that do.
    """

    layers: int
    width: int
    frozen: int
    trained: int

    @staticmethod
    def of(denoiser: Denoiser, trains: bool = True) -> Blocks:
        """Read off a network; with one of its adapters, where it has any, if the pass ``trains``."""
        frozen = trained = 0
        for name, module in denoiser.blocks().named_modules():
            if isinstance(module, nn.Linear) and CONDITIONING not in name:
                size = module.weight.numel()
                trained += size * module.weight.requires_grad
                frozen += size * (not module.weight.requires_grad)
        adapted: Iterable[Any] = lora_layers(denoiser.network).values() if trains else ()
        for layer in adapted:
            trained += sum(next(half.parameters()).numel() for half in (layer.lora_A, layer.lora_B))
        return Blocks(len(denoiser.blocks()), attention_width(denoiser), frozen, trained)

    def forward(self, rows: int, length: int) -> float:
        """FLOPs of a forward pass."""
        return rows * (2 * length * (self.frozen + self.trained) + 4 * self.layers * length**2 * self.width)

    def backward(self, rows: int, length: int) -> float:
        """FLOPs of its backward pass."""
        linear = 2 * length * (self.frozen + 2 * self.trained)
        return rows * (linear + 2 * 4 * self.layers * length**2 * self.width)


def attention_width(denoiser: Denoiser) -> int:
    """A: what all heads' queries have together."""
    for name, module in denoiser.blocks().named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("q_proj", "q_proj.base_layer")):
            return module.out_features
        if isinstance(module, nn.Linear) and name.endswith(("attn_qkv", "attn_qkv.base_layer")):
            return module.out_features // 3
    raise AssertionError(f"{type(denoiser).__name__} has no queries")


class FlopMeter:
    """FLOPs of all passes while it is entered, by the formula, and by the part that is being computed.

    Attributes:
        part: to what they are added. flops: part → FLOPs.
    """

    def __init__(self):
        self.part, self.flops = "", defaultdict(float)
        self._blocks: dict[tuple[int, bool], Blocks] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count until it is left."""
        with ExitStack() as stack:
            for family in (StockDenoiser, DitDenoiser):
                for name, counted in (("hidden_states", self._count_blocks), ("head", self._count_head)):
                    stack.enter_context(patch.object(family, name, _then(getattr(family, name), counted)))
            yield

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.flops.values())

    def _count_blocks(self, denoiser: Denoiser, canvas: Canvas, out: Tensor) -> None:
        rows, length = canvas.tokens.shape
        blocks = self._blocks_of(denoiser, out.requires_grad)
        flops = blocks.forward(rows, length)
        self.flops[self.part] += flops + (blocks.backward(rows, length) if out.requires_grad else 0)

    def _blocks_of(self, denoiser: Denoiser, trains: bool) -> Blocks:
        if (id(denoiser), trains) not in self._blocks:
            self._blocks[id(denoiser), trains] = Blocks.of(denoiser, trains)
        return self._blocks[id(denoiser), trains]

    def _count_head(self, denoiser: Denoiser, features: Tensor, out: Tensor) -> None:
        layer = denoiser.output_layer
        assert isinstance(layer, nn.Linear)
        forward = 2 * features[..., 0].numel() * layer.weight.numel()
        to_weights = out.requires_grad and layer.weight.requires_grad
        self.flops[self.part] += forward * (1 + (out.requires_grad and features.requires_grad) + to_weights)


def _then(method: Any, counted: Any) -> Any:
    """A method that is counted after it, unless it is computed again within a backward pass."""

    def both(self: Denoiser, first: Any, *rest: Any, **options: Any) -> Tensor:
        out = method(self, first, *rest, **options)
        if torch._C._current_graph_task_id() == -1:
            counted(self, first, out)
        return out

    return both
