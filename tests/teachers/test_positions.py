"""Positions of masks: found once, told, or found again after a change."""

import torch

from teachers.positions import at, on_device, positions, sent, tell


def test_values_at_a_mask_are_those_of_boolean_indexing_and_so_is_their_gradient():
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    values = torch.arange(60.0).view(3, 5, 4).requires_grad_(True)
    chosen = at(values, mask)
    assert torch.equal(chosen, values[mask])
    (chosen * torch.arange(len(chosen))[:, None]).sum().backward()
    gradient, values.grad = values.grad, None
    (values[mask] * torch.arange(len(chosen))[:, None]).sum().backward()
    assert torch.equal(gradient, values.grad)
    assert at(values, torch.zeros(3, 5, dtype=torch.bool)).shape == (0, 4)
    assert torch.equal(at(values, torch.tensor([True, False, True])), values[[0, 2]])


def test_positions_are_found_once_and_again_after_a_change():
    mask = torch.tensor([True, False, True])
    first = positions(mask)
    assert positions(mask) is first
    mask[1] = True
    assert positions(mask).tolist() == [0, 1, 2]
    told = torch.tensor([0, 1, 2])
    tell(mask, told)
    assert positions(mask) is told
    assert positions(mask.clone()) is not told


def test_what_is_sent_is_the_same():
    assert on_device([3, 1], "cpu").tolist() == [3, 1]
    assert sent(torch.ones(2), torch.device("cpu")).tolist() == [1, 1]
