"""SDTT: the time grid, which step a position's distribution is of, the loss by hand, and where its minimum is."""

from dataclasses import replace

import pytest
import torch

from objectives.divergences import kl, total_variation
from objectives.objective import Distillation
from objectives.sdtt import SdttConfig, SdttRollout, ShortSteps, target_features
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.tabular import TabularDenoiser

MASK = 3


def objective(length=3, **settings):
    teacher, student = TabularDenoiser(4, length, 0), TabularDenoiser(4, length, 1)
    return SdttConfig(**settings).build(Distillation(teacher, student, MaskedProcess(), length, teacher))


def rows(count, length=3):
    return torch.randint(3, (count, length), generator=torch.Generator().manual_seed(7))


def test_the_time_grid_steps_down_from_t():
    t = torch.tensor([0.5, 1.0, 0.01], dtype=torch.float64)
    dt = 1 / 64
    canvas = replace(Canvas.blank(3, 1, MASK), time=t)
    times = torch.stack([ShortSteps(dt=dt).time(canvas, step) for step in range(3)])
    torch.testing.assert_close(times[:, 0], torch.tensor([0.5, 0.5 - dt, 0.5 - 2 * dt], dtype=torch.float64))
    assert times[1:, 2].tolist() == [0, 0]  # never below the end

    def released(t_start, meant):
        s = torch.linspace(1, 0, 2, dtype=torch.float64)[:, None]
        t_end = t_start - 2 * dt
        return t_start * s + (1 - (s if meant else t_start)) * t_end

    assert released(t[:1], meant=False)[:, 0].tolist() == pytest.approx([0.75 - dt, 0.25 - dt])
    assert released(t[:1], meant=True)[:, 0].tolist() == pytest.approx([0.5, 0.5 - 2 * dt])  # leaves out 0.5 − dt
    for meant in (False, True):
        assert (released(t[:1], meant) - times[:2, :1]).abs().max() > dt / 2


def test_a_position_keeps_the_distribution_of_the_step_that_revealed_it():
    target, process, count = TabularDenoiser(4, 3, 2), MaskedProcess(), 4000
    start = torch.tensor([3, 1, 3]).repeat(count, 1)
    z = Canvas.of(start, MASK, time=torch.full((count,), 0.5, dtype=torch.float64))
    theirs, end = target_features(target, process, z, 0.125, 2, RowStreams(0, (1,), range(count)))
    assert torch.equal(end.open, end.tokens == MASK)
    end = end.tokens
    assert (end[:, 1] == 1).all()
    assert (theirs[:, 1] == 0).all()  # nothing for what was shown
    at_start = says(target, start)
    first = (theirs[..., :3] == at_start[..., :3]).all(-1) & (start == MASK)
    middle = torch.where(first, end, start)  # what the first step revealed, and, where it revealed all, the end
    hidden = (start == MASK) & ~first
    torch.testing.assert_close(theirs[hidden], says(target, middle)[hidden])
    # at 1/2 a step of 1/8 reveals 1/4, the next 1/3 of the rest: half are masked at the end. Where nothing was revealed
    # at first, the second step's distribution is the first's
    assert float((end == MASK)[:, [0, 2]].double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(first[:, 0].double().mean()) == pytest.approx(0.25 + 0.75 * 0.75, abs=0.03)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "mean_squared", "total_variation"])
def test_loss_by_hand(divergence):
    o = objective(first_steps=4, divergence=divergence)
    drawn = o.rollout(batch_of(o, rows(6), 6), RowStreams(0, (2,), range(6)))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for z, theirs in zip(drawn.z.tokens, drawn.theirs, strict=True):
        for i in (z == MASK).nonzero().flatten():
            log_p, log_q = says(o.student, z[None])[0, i, :3], theirs[i, :3]
            p, q, count = log_p.exp(), log_q.exp(), count + 1
            total = (
                total
                + {
                    "reverse_kl": (p * (log_p - log_q)).sum(),
                    "forward_kl": (q * (log_q - log_p)).sum(),
                    "mean_squared": (log_p - log_q).square().mean(),
                    "total_variation": (p - q).abs().sum() / 2,
                }[divergence]
            )
    out = o.loss("student", drawn)
    torch.testing.assert_close(out.sum, total)
    assert o.count("student", drawn) == count > 0
    [expected] = torch.autograd.grad(total, o.student.table)
    [gradient] = torch.autograd.grad(out.sum, o.student.table)
    torch.testing.assert_close(gradient, expected)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_the_minimum_is_the_geometric_mean_over_the_targets_steps():
    """Two masks, t = 1/2, dt = 1/4: each step reveals a position with probability 1/2, then all that are left."""
    o = objective(length=2, first_steps=4)
    count, target = 6000, o.teacher
    start = torch.full((count, 2), MASK)
    t = torch.full((count,), 0.5, dtype=torch.float64)
    z = Canvas.of(start, MASK, time=t)
    theirs, _ = target_features(target, o.process, z, o.dt, 2, RowStreams(0, (3,), range(count)))
    drawn = SdttRollout(z, theirs)
    with torch.no_grad():
        alone = says(target, torch.full((1, 2), MASK))[0, :, :3]
        best = torch.empty(2, 3, dtype=torch.float64)
        for i, j in ((0, 1), (1, 0)):
            shown = torch.full((3, 2), MASK)
            shown[:, j] = torch.arange(3)
            with_other = (alone[j].exp()[:, None] * says(target, shown)[:, i, :3]).sum(0)
            best[i] = (0.75 * alone[i] + 0.25 * with_other).log_softmax(-1)  # the other first, and i not: 1/4
    gradients = {}
    place = int((start[0] * o.student.place).sum())
    for name, values in (("best", best), ("target", alone)):
        with torch.no_grad():
            o.student.table[place, :, :3] = values
        out = o.loss("student", drawn)
        [gradient] = torch.autograd.grad(out.sum / o.count("student", drawn), o.student.table)
        gradients[name] = float(gradient.abs().max())
    assert gradients["best"] < 0.003
    assert gradients["target"] > 5 * gradients["best"]


def test_the_released_total_variation_is_ruled_by_the_improbable():
    log_p = torch.tensor([0.7, 0.3 - 1e-6, 1e-6], dtype=torch.float64).log()
    log_q = torch.tensor([0.3, 0.7 - 1e-12, 1e-12], dtype=torch.float64).log()
    released = (log_p - log_q).abs()
    assert released[2] > 5 * released[:2].max()
    assert float(total_variation(log_p, log_q)) == pytest.approx(0.4, abs=1e-5)
    assert kl(log_p, log_q) > 0


def test_times_are_uniform_and_rows_keep_what_is_not_masked():
    o = objective(first_steps=1024)
    real = rows(3000)
    drawn = o.rollout(batch_of(o, real, 3000), RowStreams(0, (4,), range(3000)))
    t, masked = drawn.z.time, drawn.z.open
    assert float(t.mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(masked, drawn.z.tokens == MASK)
    assert torch.equal(drawn.z.tokens[~masked], real[~masked])
    for low in (0.0, 0.75):
        some = (t >= low) & (t < low + 0.25)
        assert float(masked[some].double().mean()) == pytest.approx(low + 0.125, abs=0.03)
