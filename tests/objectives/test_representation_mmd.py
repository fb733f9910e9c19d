"""Representation-space MMD: the estimator, its leave-one-out gradient by enumeration, and where its minimum is."""

import itertools
import math

import pytest
import torch

from objectives.objective import Distillation
from objectives.representation_mmd import (
    MmdRollout,
    RepresentationMmdConfig,
    kernel_mean,
    leave_one_out,
    median_distance,
    set_reward,
)
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.objectives.test_integral_kl import MASK, real_rows, small_objective
from tests.objectives.wiring import check_batch_split, check_phases_are_separate, check_rows_stand_alone
from tests.tabular import TabularDenoiser, all_sequences

V, L = 3, 2
X = all_sequences(V, L)  # 9 rows of two tokens


def tabular(student_seed=1, **settings):
    start, student = TabularDenoiser(V + 1, L, 0), TabularDenoiser(V + 1, L, student_seed)
    config = RepresentationMmdConfig(sets=2, draws=2, **settings)
    return config.build(Distillation(start, student, MaskedProcess(), L, start))


def one_move_law(student):
    """p_ν(x) of the nine rows from the all-masked canvas."""
    log_p = says(student, torch.full((1, L), V))[0]
    return log_p[torch.arange(L), X].sum(-1).exp()


def exact_mmd(objective, law, real_law, same_position=True):
    """E κ(x, x') − 2 E κ(x^r, x) of completions of the all-masked canvas, differentiable in ``law``."""
    features, sigma = objective._features(Canvas.of(X, V)), objective.bandwidth
    everything = torch.ones(len(X), L, dtype=torch.bool)
    kappa = torch.stack([kernel_mean(a.expand_as(features), features, everything, sigma) for a in features])
    repulsion = kappa
    if not same_position:
        repulsion = torch.stack([without_same_position(a, features, sigma) for a in features])
    return law @ repulsion @ law - 2 * real_law @ kappa @ law


def without_same_position(a, features, sigma):
    """κ between one row and the others, pairs of the same position left out, as the released code does."""
    squares = (a[None, :, None] - features[:, None]).square().sum(-1)
    off = 1 - torch.eye(L, dtype=torch.float64)
    return (torch.exp(-squares / (2 * sigma**2)) * off).sum((1, 2)) / (L * (L - 1))


def enumerated(objective, real_law):
    """Expectation, over real rows and all draws, of the loss whose gradient training follows."""
    law = one_move_law(objective.student).detach()
    draws = torch.tensor(list(itertools.product(range(len(X)), repeat=4)))  # two sets of two
    chance = law[draws].prod(1)
    state = Canvas.blank(len(draws), L, V)
    total = torch.zeros((), dtype=torch.float64)
    for real, weight in zip(X, real_law, strict=True):
        reward = objective.rewards(real.expand(len(draws), L), state, X[draws], state.open)
        rollout = MmdRollout(state, X[draws], leave_one_out(reward) * (weight * chance)[:, None], reward)
        total = total + objective.loss("student", rollout).sum
    return total


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_leave_one_out_gradient_is_that_of_the_mmd(kernel):
    """All 9⁴ draws of two sets of two, for two real rows: ∇ of the expected loss is ∇ MMD², without bias."""
    objective = tabular(kernel=kernel)
    real_law = torch.zeros(9, dtype=torch.float64)
    real_law[[1, 5]] = torch.tensor([0.3, 0.7], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(enumerated(objective, real_law), objective.student.table)
    law = one_move_law(objective.student)
    if kernel == "rbf":
        target = exact_mmd(objective, law, real_law)
    else:  # MMD² of the linear kernel: the squared distance of mean features
        features = objective._features(Canvas.of(X, V)).mean(1)
        target = (law @ features - real_law @ features).square().sum()
    (expected,) = torch.autograd.grad(target, objective.student.table)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_minimum_is_where_the_student_writes_what_the_data_is():
    """Data of independent tokens can be met from an all-masked canvas: gradient 0 there, not elsewhere."""
    objective = tabular()
    real_law = one_move_law(objective.student).detach()
    (gradient,) = torch.autograd.grad(enumerated(objective, real_law), objective.student.table)
    assert gradient.norm() < 1e-8
    (away,) = torch.autograd.grad(enumerated(objective, torch.full((9,), 1 / 9).double()), objective.student.table)
    assert away.norm() > 1e-3


def test_leaving_out_pairs_of_the_same_position_would_move_the_minimum():
    """As the released code does, in the generated–generated kernel alone: no MMD, and no minimum at the data."""
    objective = tabular()
    law = one_move_law(objective.student)
    norms = []
    for same_position in (True, False):
        target = exact_mmd(objective, law, law.detach(), same_position)
        norms.append(float(torch.autograd.grad(target, objective.student.table, retain_graph=True)[0].norm()))
    assert norms[0] < 1e-8
    assert norms[1] > 1e-3


def test_reward_by_hand():
    """Two positions used of three, two completions, one-dimensional features."""
    real = torch.tensor([[[0.0], [1.0], [9.0]]])
    drawn = torch.tensor([[[[0.0], [2.0], [9.0]], [[1.0], [3.0], [9.0]]]])
    used = torch.tensor([[True, True, False]])

    def k(a, b):
        return math.exp(-((a - b) ** 2) / (2 * 1.5**2))

    def kappa(left, right):
        return sum(k(a, b) for a in left for b in right) / 4

    expected = kappa([0, 1], [0, 2]) + kappa([0, 1], [1, 3]) - kappa([0, 2], [1, 3])
    torch.testing.assert_close(set_reward(real, drawn, used, 1.5), torch.tensor([expected]))
    linear = 0.5 * 1.0 + 0.5 * 2.0 - 1.0 * 2.0  # means 0.5, and 1 and 2
    torch.testing.assert_close(set_reward(real, drawn, used, None), torch.tensor([linear]))


def test_leave_one_out_by_hand():
    out = leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    torch.testing.assert_close(out, torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5]]))


def test_median_distance_by_hand():
    features = torch.tensor([[[0.0], [1.0], [4.0]], [[2.0], [2.0], [2.0]]])
    assert median_distance(features[:1]) == 3.0  # of 1, 3 and 4
    assert median_distance(features[1:]) == 1.0  # all alike: any bandwidth will do


def test_loss_by_hand():
    """−1/G Σ_g A_g Σ_b Σ_{masked} log p_ν(x_gbi | z), with the advantages of the rollout."""
    objective = small_objective(RepresentationMmdConfig(sets=2, draws=2))
    rollout = objective.rollout(batch_of(objective, real_rows(4), 4), RowStreams(0, (0,), range(4)))
    assert (rollout.advantage.abs() > 0).any()
    torch.testing.assert_close(rollout.advantage[:, 0], rollout.reward[:, 0] - rollout.reward[:, 1])
    total = torch.zeros(())
    for z, drawn, advantage in zip(rollout.state.tokens, rollout.drawn, rollout.advantage, strict=True):
        log_p = says(objective.student, z[None])[0]
        for m, x in enumerate(drawn):
            assert (x[z != MASK] == z[z != MASK]).all()
            assert (x != MASK).all()
            total = total - advantage[m // 2] / 2 * log_p[torch.arange(len(x)), x][z == MASK].sum()
    out = objective.loss("student", rollout)
    torch.testing.assert_close(out.sum, total, rtol=1e-4, atol=1e-6)
    assert objective.count("student", rollout) == 2 * rollout.state.open.sum()


def test_completions_have_the_students_law():
    objective = tabular()
    state = Canvas.blank(4000, L, V)
    uniforms = torch.rand(4000, L, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = objective._complete(state, uniforms)
    assert drawn.shape == (4000, 3, L)
    places = drawn.reshape(-1, L) @ torch.tensor([V, 1])
    torch.testing.assert_close(
        torch.bincount(places, minlength=9) / 12000, one_move_law(objective.student).detach().float(), atol=0.02, rtol=0
    )


@pytest.mark.parametrize(
    "config",
    [RepresentationMmdConfig(), RepresentationMmdConfig(kernel="linear", observations="sequence", sets=3, bandwidth=2)],
)
def test_wiring(config):
    """Also the reason why there is no group: a row's rewards are its own, wherever the others are."""
    check_batch_split(small_objective(config), real_rows(8))
    check_phases_are_separate(small_objective(config), real_rows(8))
    check_rows_stand_alone(small_objective(config), real_rows(8))


def test_features_are_frozen_and_end_at_the_chosen_block():
    objective = small_objective(RepresentationMmdConfig(blocks=1))
    assert len(objective.extractor.blocks()) == 1
    assert len(objective.student.blocks()) == 2  # a copy was cut, not the start
    assert len(small_objective(RepresentationMmdConfig()).extractor.blocks()) == 1  # a third, rounded up
    assert not any(p.requires_grad for p in objective.extractor.parameters())
    x = Canvas.of(real_rows(2), MASK)
    before = objective._features(x)
    with torch.no_grad():
        objective.student.blocks()[0].mlp.down_proj.weight.add_(1.0)
    assert torch.equal(objective._features(x), before)
    assert not torch.equal(before, small_objective(RepresentationMmdConfig(blocks=2))._features(x))


def test_sequence_observations_are_the_mean_over_masked_positions():
    objective = small_objective(RepresentationMmdConfig(observations="sequence", kernel="rbf", bandwidth=3.0))
    features, used = torch.randn(2, 4, 5), torch.tensor([[True, True, False, False], [False] * 4])
    out = objective._observed(features, used)
    torch.testing.assert_close(out[0, 0], features[0, :2].mean(0))
    assert (out[1] == 0).all()


def test_settings_that_do_not_fit_are_refused():
    for name in ("sets", "draws"):
        with pytest.raises(ValueError, match=f"{name} is 1"):
            RepresentationMmdConfig(**{name: 1})
    with pytest.raises(UserError, match=r"objective\.blocks is 3, but the frozen network has 2 blocks"):
        small_objective(RepresentationMmdConfig(blocks=3))


def test_the_default_bandwidth_is_that_of_typical_rows_and_knows_neither_data_nor_draws():
    first, second = (small_objective(RepresentationMmdConfig()) for _ in range(2))
    assert first.bandwidth == second.bandwidth > 0
    first.rollout(batch_of(first, real_rows(8), 8), RowStreams(0, (0,), range(8)))
    assert first.bandwidth == second.bandwidth
    features = first._features(Canvas.of(real_rows(8), MASK))
    assert 0.5 < first.bandwidth / median_distance(features) < 2
    assert small_objective(RepresentationMmdConfig(bandwidth=7.0)).bandwidth == 7.0
