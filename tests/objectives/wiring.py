"""What every objective's wiring must keep, whatever it minimises."""

import torch

from teachers.canvas import Canvas, Context
from teachers.randomness import RowStreams
from tests.batches import batch_of


@torch.no_grad()
def shake(objective):
    """Move every network a little: a critic that is still the teacher rewards nothing, and all gradients are 0."""
    generator = torch.Generator().manual_seed(1)
    for phase in objective.phases:
        for p in objective.networks[phase].parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))


def check_batch_split(objective, real, rows=8):
    """1×8 rows and 8 rows in micro-batches of the group: one gradient, in every phase."""
    shake(objective)
    rollout = objective.rollout(batch_of(objective, real, rows), RowStreams(0, (0,), range(rows)))
    for phase in objective.phases:
        network, gradients = objective.networks[phase], []
        for size in (rows, objective.group):
            network.zero_grad()
            for start in range(0, rows, size):
                out = objective.loss(phase, rollout.rows(slice(start, start + size)))
                (out.sum / objective.count(phase, rollout)).backward()
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        network.zero_grad()
        assert any(gradient.abs().sum() > 0 for gradient in gradients[0])
        for one, many in zip(*gradients, strict=True):
            torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-6)  # float32 sums in another order


def check_rows_stand_alone(objective, real, rows=8):
    """A rollout of half the rows is half the rollout: nothing depends on which process holds a row."""
    whole = objective.rollout(batch_of(objective, real, rows), RowStreams(0, (1,), range(rows)))
    half = objective.rollout(
        batch_of(objective, real[rows // 2 :], rows // 2), RowStreams(0, (1,), range(rows // 2, rows))
    )
    for name, value in tensors_of(whole).items():
        torch.testing.assert_close(value[rows // 2 :], tensors_of(half)[name], rtol=1e-4, atol=1e-5)


def tensors_of(rollout):
    """Name → tensor of a rollout, those of its canvases and their contexts by dotted names."""
    return dict(_tensors(rollout.parts(), ""))


def _tensors(values, prefix):
    for name, value in values.items():
        if isinstance(value, Canvas | Context):
            yield from _tensors(vars(value), f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def check_phases_are_separate(objective, real, rows=8):
    """Each phase gives gradients to its own network, and to no other, nor to the teacher."""
    rollout = objective.rollout(batch_of(objective, real, rows), RowStreams(0, (0,), range(rows)))
    for phase in objective.phases:
        objective.loss(phase, rollout).sum.backward()
        for other in objective.phases:
            reached = [p for p in objective.networks[other].parameters() if p.grad is not None]
            assert bool(reached) == (other == phase)
            objective.networks[other].zero_grad()
