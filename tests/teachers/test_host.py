"""What the host knows of tensors: what it is told, learns or derives, and nothing that has changed since."""

import gc

import pytest
import torch

from teachers import host
from teachers.canvas import Canvas
from teachers.positions import positions


def copied(tensor):
    copy = host.known(tensor)
    return None if copy is None else copy.tolist()


def test_what_is_learned_is_the_same_whatever_the_types():
    mask, numbers = torch.rand(3, 5) < 0.5, torch.randint(-(2**40), 2**40, (4, 3))
    small = torch.tensor([True])
    copies = host.learned(small, mask, numbers)
    for copy, tensor in zip(copies, (small, mask, numbers), strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
    assert host.learned(mask)[0] is copies[1]


@pytest.mark.parametrize("changed", ["the tensor", "the copy"])
def test_what_has_changed_is_not_known(changed):
    tensor, copy = torch.zeros(3), torch.zeros(3)
    host.tell(tensor, copy)
    assert host.known(tensor) is copy
    (tensor if changed == "the tensor" else copy)[0] = 1
    assert host.known(tensor) is None


def test_what_is_derived_is_known_where_all_it_comes_from_is():
    one, other = torch.tensor([1, 2]), torch.tensor([3, 4])
    host.learned(one)
    assert copied(host.derived(torch.add, one, other)) is None
    host.learned(other)
    total = host.derived(torch.add, one, other)
    assert total.tolist() == [4, 6]
    assert copied(total) == [4, 6]
    assert copied(host.part_of(total, slice(1, 2))) == [6]
    assert copied(host.part_of(total, torch.tensor([1]))) is None  # which row that is, it has not learned
    assert [copied(part) for part in host.split_of(total, [0, 2])] == [[], [4, 6]]


def test_copies_go_with_their_tensors():
    before = len(host._COPIES)
    mask = torch.tensor([True, False])
    host.learned(mask)
    assert len(host._COPIES) == before + 1
    del mask
    gc.collect()
    assert len(host._COPIES) == before


def test_positions_and_likeness_are_those_of_the_copy():
    rows = torch.tensor([[True, False], [False, True]])
    host.learned(rows)
    assert positions(rows).tolist() == [0, 3]
    assert not host.alike(rows)
    assert host.alike(rows[:1])
    canvas = Canvas.blank(3, 4, 9)
    assert host.alike(canvas.tokens)
    canvas.tokens[0, 0] = 1
    assert not host.alike(canvas.tokens)
