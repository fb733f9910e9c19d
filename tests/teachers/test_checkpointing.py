"""A checkpointed block that keeps its matrix products computes none of them again."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from students.student import enable_gradient_checkpointing
from teachers.canvas import Canvas
from teachers.checkpointing import PRODUCTS
from tests.networks import stock


class Counted(TorchDispatchMode):
    """Counts matrix products and attention while it is entered."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in PRODUCTS
        return function(*args, **(kwargs or {}))


def update(checkpointing):
    """Products of a backward pass, and its gradients."""
    network = stock(12, 8)
    enable_gradient_checkpointing(network, checkpointing)
    canvas = Canvas.blank(2, 8, network.spec.mask_id)
    loss = network.features(canvas).square().sum()
    with Counted() as products:
        loss.backward()
    return products.count, [p.grad for p in network.parameters() if p.grad is not None]


@pytest.fixture(scope="module")
def plain():
    return update(False)


def test_nothing_is_multiplied_again_where_products_are_kept(plain):
    assert update("products")[0] == plain[0]
    assert update(True)[0] > plain[0]


@pytest.mark.parametrize("checkpointing", ["products", True])
def test_gradients_are_the_same_bit_for_bit(plain, checkpointing):
    gradients = update(checkpointing)[1]
    assert len(gradients) == len(plain[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain[1], strict=True))
