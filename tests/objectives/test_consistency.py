"""Masked consistency: nested states, the loss by hand, its minimum, and what the boundary term is for."""

import itertools

import pytest
import torch

from objectives.consistency import ConsistencyConfig, ConsistencyRollout
from objectives.objective import Distillation
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.tabular import TabularDenoiser, all_sequences

MASK, LENGTH = 2, 2


def joint(seed=0):
    """A law of rows of two of two tokens: (4,)."""
    return torch.softmax(1.5 * torch.randn(4, generator=torch.Generator().manual_seed(seed)).double(), 0)


def exact(law):
    """The table of the law's own conditionals."""
    denoiser, sequences = TabularDenoiser(MASK + 1, LENGTH, 0), all_sequences(MASK, LENGTH)
    with torch.no_grad():
        for z in all_sequences(MASK + 1, LENGTH):
            fits = ((sequences == z) | (z == MASK)).all(1)
            place = int((z * denoiser.place).sum())
            for i, v in itertools.product(range(LENGTH), range(MASK)):
                denoiser.table[place, i, v] = (law * (fits & (sequences[:, i] == v))).sum().log()
    return denoiser.requires_grad_(False)


def build(teacher, student, **settings):
    config = ConsistencyConfig(first_steps=2, **settings)
    return config.build(Distillation(teacher, student, MaskedProcess(), LENGTH, teacher))


def expected_loss(objective, law, t=0.75, s=0.25):
    """E over rows and over both states at once; every state has its probability."""
    total = 0.0
    share = {"both": s, "first": t - s, "neither": 1 - t}
    for x, p in zip(all_sequences(MASK, LENGTH), law, strict=True):
        for kinds in itertools.product(share, repeat=LENGTH):
            z_t = torch.tensor([v if k == "neither" else MASK for v, k in zip(x.tolist(), kinds, strict=True)])
            z_s = torch.tensor([MASK if k == "both" else v for v, k in zip(x.tolist(), kinds, strict=True)])
            states = (Canvas.of(z[None], MASK, time=torch.tensor([at]).double()) for z, at in ((z_t, t), (z_s, s)))
            out = objective.loss("student", ConsistencyRollout(*states, x[None]))
            weight = p
            for kind in kinds:
                weight = weight * share[kind]
            total = total + weight * out.sum
    return total


def gradient(objective, law):
    objective.student.zero_grad()
    expected_loss(objective, law).backward()
    return float(objective.student.table.grad.abs().max())


def test_one_noise_gives_both_states():
    objective = build(TabularDenoiser(3, 2, 0), TabularDenoiser(3, 2, 1))
    real = torch.randint(2, (4000, 2), generator=torch.Generator().manual_seed(1))
    drawn = objective.rollout(batch_of(objective, real, 4000), RowStreams(0, (0,), range(4000)))
    at_t, at_s = drawn.z_t.open, drawn.z_s.open
    assert not (at_s & ~at_t).any()
    for z in (drawn.z_t, drawn.z_s):
        assert torch.equal(z.open, z.tokens == MASK)
        assert torch.equal(z.tokens[~z.open], real[~z.open])
    t, s = drawn.z_t.time, drawn.z_s.time
    torch.testing.assert_close(t - s, torch.full((4000,), objective.dt, dtype=torch.float64))
    assert float((t == 1).double().mean()) == pytest.approx(objective.dt, abs=0.03)
    for masked, times in ((at_t, t), (at_s, s)):
        assert float(masked.double().mean()) == pytest.approx(float(times.mean()), abs=0.03)


def test_dt_doubles_and_never_leaves_the_interval():
    objective = ConsistencyConfig(rounds=12).build(
        Distillation(TabularDenoiser(3, 2, 0), TabularDenoiser(3, 2, 0), MaskedProcess(), 2, TabularDenoiser(3, 2, 0))
    )
    found = []
    for update in range(12):
        objective.begin(update, 12)
        found.append(objective.dt * 512)
    assert found == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jensen_shannon"])
def test_loss_by_hand(divergence):
    teacher, student = TabularDenoiser(3, 2, 0), TabularDenoiser(3, 2, 1)
    objective = build(teacher, student, divergence=divergence, boundary=0.3)
    real = torch.randint(2, (8, 2), generator=torch.Generator().manual_seed(2))
    drawn = objective.rollout(batch_of(objective, real, 8), RowStreams(0, (2,), range(8)))
    total, kinds = torch.zeros((), dtype=torch.float64), set()
    for z_t, z_s, x in zip(drawn.z_t.tokens, drawn.z_s.tokens, real, strict=True):
        for i in range(2):
            log_p, log_q = says(student, z_t[None])[0, i, :2], says(teacher, z_s[None])[0, i, :2]
            p, q, m = log_p.exp(), log_q.exp(), (log_p.exp() + log_q.exp()) / 2
            if z_s[i] == MASK:
                total = (
                    total
                    + {
                        "reverse_kl": (p * (log_p - log_q)).sum(),
                        "forward_kl": (q * (log_q - log_p)).sum(),
                        "jensen_shannon": (p * (log_p - m.log()) + q * (log_q - m.log())).sum() / 2,
                    }[divergence]
                )
            elif z_t[i] == MASK:
                total = total - 0.3 * log_p[x[i]]
            kinds.add((int(z_t[i] == MASK), int(z_s[i] == MASK)))
    assert kinds == {(0, 0), (1, 0), (1, 1)}
    out = objective.loss("student", drawn)
    torch.testing.assert_close(out.sum, total)
    assert objective.count("student", drawn) == drawn.z_t.open.sum()
    [one] = torch.autograd.grad(out.sum, student.table)
    [other] = torch.autograd.grad(total, student.table)
    torch.testing.assert_close(one, other)


def test_exact_conditionals_are_the_minimum_of_the_forward_kl_and_not_of_the_reverse():
    law = joint()
    teacher = exact(law)
    assert gradient(build(teacher, trainable_copy(teacher), divergence="forward_kl"), law) < 1e-12
    assert gradient(build(teacher, TabularDenoiser(3, 2, 1), divergence="forward_kl"), law) > 1e-2
    assert gradient(build(teacher, trainable_copy(teacher)), law) > 1e-3


def test_the_reverse_kls_minimum_is_the_geometric_mean_over_the_later_state():
    law = joint()
    teacher = exact(law)
    student = trainable_copy(teacher)
    t, s = 0.75, 0.25
    with torch.no_grad():
        for i, j in ((0, 1), (1, 0)):  # both masked at t, i masked at s too; j shown there with probability (t − s)/t
            alone = says(teacher, torch.tensor([[MASK, MASK]]))[0]
            shown = torch.full((2, 2), MASK)
            shown[:, j] = torch.arange(2)
            seen = (alone[j, :2].exp()[:, None] * says(teacher, shown)[:, i, :2]).sum(0)
            mean = s / t * alone[i, :2] + (t - s) / t * seen
            student.table[int((torch.tensor([MASK, MASK]) * student.place).sum()), i, :2] = mean.log_softmax(-1)
    assert gradient(build(teacher, student, boundary=0.0), law) < 1e-12


def test_without_the_boundary_term_ignoring_the_context_is_consistent():
    law = joint()
    blind = TabularDenoiser(3, 2, 3)
    with torch.no_grad():
        blind.table.copy_(torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(4)).expand_as(blind.table))
    for boundary, collapses in ((0.0, True), (1.0, False)):
        objective = build(exact(law), blind, boundary=boundary)
        objective.begin(4, 5)  # the target follows the student
        with torch.no_grad():
            objective.target.table.copy_(blind.table)
        loss = float(expected_loss(objective, law).detach())
        if collapses:  # the target is kept in float32
            assert abs(loss) < 1e-6
            assert gradient(objective, law) < 1e-6
        else:
            assert loss > 0.1
            assert gradient(objective, law) > 1e-2
