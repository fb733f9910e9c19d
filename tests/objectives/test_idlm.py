"""IDLM: its loss difference against the marginalised integral-KL gradient, its soft labels, its states from data."""

import pytest
import torch

from objectives.idlm import IdlmConfig
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from students.rollout import from_data
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.objectives.test_integral_kl import MASK, real_rows, small_objective
from tests.objectives.wiring import check_batch_split, check_phases_are_separate, check_rows_stand_alone
from tests.tabular import TabularDenoiser, all_patterns, all_sequences

V, L = 3, 3
X, PATTERNS = all_sequences(V, L), all_patterns(L)


def tabular(seed=0):
    teacher, student = TabularDenoiser(V + 1, L, seed), TabularDenoiser(V + 1, L, seed + 1)
    objective = IdlmConfig().build(Distillation(teacher.requires_grad_(False), student, MaskedProcess(), L, teacher))
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        auxiliary = objective.ratio.network.table
        auxiliary.add_(torch.randn(auxiliary.shape, generator=noise, dtype=torch.float64))
    return objective


def tabular_rollout(objective, rows=12):
    real = torch.randint(0, V, (rows, L), generator=torch.Generator().manual_seed(3))
    return objective.rollout(batch_of(objective, real, rows), RowStreams(0, (2,), range(rows)))


def simplex(student, z, sample):
    """G: the student's law where z is masked, the token elsewhere; (L, V) real columns."""
    law = says(student, z[None])[0, :, :V].exp()
    return torch.where((z == V)[:, None], law, torch.nn.functional.one_hot(sample, V).to(law))


def test_gradient_is_that_of_the_difference_of_two_masked_losses():
    """w/L Σ_{masked in z̃} ⟨G, log f − log f*⟩, as the paper writes it; where z shows the token, a constant."""
    objective = tabular()
    student, rollout = objective.student, tabular_rollout(objective)
    total, constants = torch.zeros((), dtype=torch.float64), 0.0
    for row in range(len(rollout)):
        z, fake = rollout.states[row, 0], rollout.fake.tokens[row]
        given = simplex(student, z, rollout.sample[row])
        masked_losses = []
        for network in (objective.teacher, objective.ratio.network):
            log_f = says(network, fake[None])[0, :, :V].detach()
            masked_losses.append(-(given * log_f).sum(-1)[fake == V].sum())
            shown = (fake == V) & (z != V)
            sign = 1 if network is objective.teacher else -1
            constants += float(rollout.weight[row] / L * sign * -(given * log_f).sum(-1)[shown].sum().detach())
        total = total + rollout.weight[row].double() / L * (masked_losses[0] - masked_losses[1])
    out = objective.loss("student", rollout).sum
    assert constants != 0
    torch.testing.assert_close(out, total - constants, rtol=1e-6, atol=1e-8)
    (expected,) = torch.autograd.grad(total, student.table)
    (gradient,) = torch.autograd.grad(out, student.table)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_weights_are_the_elbos_unclamped_and_times_are_independent():
    objective = small_objective(IdlmConfig())
    rows = 3000
    rollout = objective.rollout(batch_of(objective, real_rows(rows), rows), RowStreams(0, (0,), range(rows)))
    assert rollout.weight.min() >= 1
    assert rollout.weight.max() > 50  # 1/t, down to t = 1e-3
    shares = torch.stack([(x == MASK).float().mean(1) for x in (rollout.states[:, 0], rollout.fake.tokens)])
    assert shares.mean(1).sub(0.5).abs().max() < 0.03
    assert float(torch.corrcoef(shares)[0, 1].abs()) < 0.06


def gap(student, teacher, auxiliary):
    """L(f*, p_ν) − L(f, p_ν) of a student that writes all in one move, over every sample, pattern and time; (a), (b).

    ∫ t^k (1−t)^(L−k) / t dt = B(k, L−k+1), k the pattern's masks. ``(a)`` has the token at a masked position as the
    variable and the law of z̃ held, ``(b)`` the other way round.
    """
    log_p = says(student, torch.full((1, L), V))[0, :, :V]
    law = log_p[torch.arange(L), X].sum(-1).exp()
    whole, a, b = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for pattern in PATTERNS[1:]:
        k = pattern.sum().double()
        weight = torch.exp(torch.lgamma(k) + torch.lgamma(L - k + 1) - torch.lgamma(torch.tensor(L + 1.0).double()))
        z = torch.where(pattern, V, X)
        difference = (auxiliary(z) - says(teacher, z)[..., :V]) * pattern[:, None]
        inner = (log_p.exp() * difference).sum((1, 2))
        held = (log_p.exp() * difference.detach()).sum((1, 2))
        whole = whole + weight * (law * inner).sum()
        a = a + weight * (law.detach() * held).sum()
        b = b + weight * (law * inner.detach()).sum()
    return whole, a, b


def test_relation_to_the_marginalised_gradient_by_enumeration():
    """∇ of the gap is (a) the marginalised gradient plus (b) what goes through the law of z̃, which IDLM drops."""
    teacher, student = TabularDenoiser(V + 1, L, 0).requires_grad_(False), TabularDenoiser(V + 1, L, 1)

    def own(z):  # the best denoiser of what one move writes: its tokens are independent
        return says(student, torch.full((1, L), V))[0, :, :V].expand(len(z), L, V)

    whole, a, b = gap(student, teacher, own)
    everything, through_token, through_law = (
        torch.autograd.grad(x, student.table, retain_graph=True)[0] for x in (whole, a, b)
    )
    torch.testing.assert_close(everything, through_token + through_law)  # f is at its minimum: no gradient through it
    assert through_law.norm() > 0.05 * everything.norm()

    # (a) is what IntegralKL's marginalised gradient gives in expectation: the same states, weights and auxiliary
    config = IdlmConfig(rollout="one_move")
    objective = config.build(Distillation(teacher, student, MaskedProcess(), L, teacher))
    auxiliary = trainable_copy(student)
    with torch.no_grad():
        auxiliary.table[:] = student.table[int((V * student.place).sum())]
    objective.ratio.network = auxiliary
    log_p = says(student, torch.full((1, L), V))[0, :, :V].detach()
    law = log_p[torch.arange(L), X].sum(-1).exp()
    rollout = objective.rollout(batch_of(objective, None, len(X)), RowStreams(0, (0,), range(len(X))))
    rollout.sample = X
    expected = torch.zeros_like(student.table)
    for pattern in PATTERNS[1:]:
        k = float(pattern.sum())
        beta = torch.exp(
            torch.lgamma(torch.tensor(k)) + torch.lgamma(torch.tensor(L - k + 1)) - torch.lgamma(torch.tensor(L + 1.0))
        )
        rollout.fake = Canvas.of(torch.where(pattern, V, X), V)
        rollout.weight = law * beta.double() * L
        expected += torch.autograd.grad(objective.loss("student", rollout).sum, student.table)[0]
    torch.testing.assert_close(through_token, expected, rtol=1e-5, atol=1e-8)


def test_the_gap_is_smallest_where_student_and_teacher_write_the_same():
    """A teacher whose tokens are independent can be met in one move: gap and gradient are 0 there, and only there."""
    teacher = TabularDenoiser(V + 1, L, 0).requires_grad_(False)
    teacher.table[:] = teacher.table[0].clone()
    for shift in (0.0, 0.5):
        student = trainable_copy(teacher)
        with torch.no_grad():
            student.table[..., 0] += shift

        def own(z, student=student):
            return says(student, torch.full((1, L), V))[0, :, :V].expand(len(z), L, V)

        whole, a, _ = gap(student, teacher, own)
        (gradient,) = torch.autograd.grad(a, student.table, retain_graph=True)
        if shift == 0:
            assert abs(float(whole.detach())) < 1e-12
            assert gradient.norm() < 1e-12
        else:
            assert whole > 1e-3
            assert gradient.norm() > 1e-3


def test_soft_labels_by_hand():
    """The auxiliary learns ⟨G, −log f⟩ on masked positions of z̃: the law where z was masked, the token where not."""
    objective = tabular()
    rollout = tabular_rollout(objective)
    total, drawn, shown = torch.zeros((), dtype=torch.float64), 0, 0
    for row in range(len(rollout)):
        z, fake = rollout.states[row, 0], rollout.fake.tokens[row]
        given = simplex(objective.student, z, rollout.sample[row]).detach()
        log_f = says(objective.ratio.network, fake[None])[0, :, :V]
        total = total - (given * log_f).sum(-1)[fake == V].sum()
        drawn += int(((fake == V) & (z == V)).sum())
        shown += int(((fake == V) & (z != V)).sum())
    assert drawn
    assert shown
    out = objective.loss("critic", rollout).sum
    torch.testing.assert_close(out, total)
    table = objective.ratio.network.table
    torch.testing.assert_close(torch.autograd.grad(out, table)[0], torch.autograd.grad(total, table)[0])


def test_soft_labels_ask_the_student_no_second_time():
    objective = small_objective(IdlmConfig())
    before = objective.student.tally.passes
    rollout = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (0,), range(8)))
    objective.loss("critic", rollout)
    assert objective.student.tally.passes - before == 8


def test_soft_labels_are_the_sampled_ones_in_expectation():
    """Over the token drawn at one masked position of z̃, the rest as it is: the same loss."""
    student, f = TabularDenoiser(V + 1, L, 1), TabularDenoiser(V + 1, L, 2)
    losses = {}
    for targets in ("soft", "sampled"):
        config = IdlmConfig(ratio={"labels": targets})
        objective = config.build(Distillation(f, student, MaskedProcess(), L, f))
        rollout = objective.rollout(
            batch_of(objective, torch.zeros(V, L, dtype=torch.long), V), RowStreams(0, (0,), range(V))
        )
        rollout.states = torch.full((V, 1, L), V)
        rollout.revealed = torch.ones(V, 1, L, dtype=torch.bool)
        rollout.sample = torch.tensor([[0, token, 2] for token in range(V)])
        rollout.fake = Canvas.of(torch.tensor([[0, V, 2]] * V), V)
        if targets == "soft":
            rollout.features = student.features(Canvas.blank(V, L, V)).detach()
        chance = says(student, torch.full((1, L), V))[0, 1, :V].exp()
        each = torch.stack([objective.loss("critic", rollout.rows(slice(i, i + 1))).sum for i in range(V)])
        losses[targets] = (chance * each).sum()
    torch.testing.assert_close(losses["soft"], losses["sampled"])


def test_reported_losses_are_those_of_masked_tokens():
    """The released sum has −10⁶ for every entry that a visible position rules out: hundreds of thousands a token."""
    objective = tabular()
    rollout = tabular_rollout(objective)
    out = objective.loss("critic", rollout)
    nats, count = out.metrics["nats"]
    assert count == (rollout.fake.tokens == V).sum()
    assert 0 < float(nats / count) < 10
    assert 0 < float(out.sum.detach() / count) < 10


def test_states_come_from_the_real_row():
    student = TabularDenoiser(V + 1, L, 0)
    real = torch.randint(0, V, (4000, L), generator=torch.Generator().manual_seed(0))
    t = torch.full((4000,), 0.7, dtype=torch.float64)
    out = from_data(student, MaskedProcess(), real, Canvas.blank(4000, L, V), t, RowStreams(0, (0,), range(4000)))
    z = out.states[:, 0]
    assert torch.equal(out.revealed[:, 0], z == V)
    assert abs(float(out.revealed.float().mean()) - 0.7) < 0.02
    assert (z[z != V] == real[z != V]).all()
    assert (out.sample[z != V] == real[z != V]).all()
    everything = (z == V).all(1)  # all masked: the student's own law
    law = torch.bincount(out.sample[everything, 0], minlength=V) / everything.sum()
    torch.testing.assert_close(
        law.double(), says(student, torch.full((1, L), V))[0, 0, :V].exp().detach(), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("config", [IdlmConfig(), IdlmConfig(rollout={"name": "k_step", "steps": [2, 4]})])
def test_wiring(config):
    check_batch_split(small_objective(config), real_rows(8))
    check_phases_are_separate(small_objective(config), real_rows(8))
    check_rows_stand_alone(small_objective(config), real_rows(8))
    assert small_objective(config).needs == ("rows" if config.rollout.name == "data" else "nothing")


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="labels 'soft'"):
        IntegralKLConfig(ratio={"labels": "soft", "label_smoothing": 0.1})
    with pytest.raises(ValueError, match=r"ratio\.discriminator\.labels"):
        IntegralKLConfig(ratio={"name": "discriminator", "labels": "soft"}, gradient="per_token")
