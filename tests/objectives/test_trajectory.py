"""Objectives on the teacher's unmasking order: what is hidden, the curricula, losses by hand, minima by enumeration."""

import pytest
import torch
from pydantic import ValidationError

from objectives.certainty import CanvasRollout
from objectives.constrained_order import ConstrainedOrderConfig, state_before
from objectives.t3d import T3DConfig, T3DRollout, ddo, path_weights, round_starts
from objectives.trajectory import TrajectoryConfig, last_unmasked, unmasking_rank
from teachers.canvas import Canvas
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.objectives.test_certainty import (
    LENGTH,
    MASK,
    assert_splits_alike,
    build,
    build_tabular,
    empirical_law,
    rows_of,
    shown,
)
from tests.tabular import TabularDenoiser, all_sequences


def orders(rows, length=LENGTH, at_once=1):
    """Random orders, ``at_once`` tokens a pass."""
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randperm(length, generator=generator) for _ in range(rows)]) // at_once


def trajectories(rows, length=LENGTH, at_once=1):
    return torch.stack([rows_of(rows, length), orders(rows, length, at_once)], 1)


# --- d3LLM ---------------------------------------------------------------------------------------------------------


def test_hidden_are_those_that_the_teacher_unmasked_last():
    order = torch.tensor([[5, 0, 2, 1, 4, 3]])
    within = torch.tensor([[True, True, True, True, False, False]])
    u = torch.zeros(1, 6, dtype=torch.float64)
    assert unmasking_rank(order, within, u)[0, :4].tolist() == [3, 0, 2, 1]
    for ratio, hidden in ((0.0, [0]), (0.25, [0]), (0.26, [0, 2]), (0.5, [0, 2]), (0.75, [0, 2, 3]), (1, [0, 1, 2, 3])):
        found = last_unmasked(order, within, torch.tensor([ratio]).double(), u)
        assert found[0].nonzero().squeeze(1).tolist() == hidden


def test_tokens_of_one_pass_are_cut_at_random():
    order = torch.tensor([[0, 1, 1, 1]]).expand(3000, 4)
    u = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = last_unmasked(order, torch.ones_like(order).bool(), torch.full((3000,), 0.25).double(), u)
    assert (hidden.sum(1) == 1).all()
    assert not hidden[:, 0].any()
    assert ((hidden.double().mean(0)[1:] - 1 / 3).abs() < 0.03).all()


def test_the_share_of_masks_is_exact_whatever_the_order_and_the_window():
    """The released code reads the window's pattern off the state after start + unmasked steps, of another share."""
    config = TrajectoryConfig(smallest_ratio=(0.5, 0.5), largest_ratio=0.5, window=(4, 4))
    objective, real = build(config), trajectories(200)
    rollout = objective.rollout(batch_of(objective, real, 200), RowStreams(0, (0,), range(200)))
    hidden, window = rollout.scored[:, 0], rollout.scored.any(1)
    assert torch.equal(hidden.sum(1), window.sum(1) // 2)
    order = real[:, 1]
    assert ((order * hidden).amax(1) > 0).all()
    assert (order.masked_fill(~hidden, LENGTH).amin(1) > order.masked_fill(hidden | ~window, -1).amax(1)).all()
    start = window.int().argmax(1)
    released = window & (order >= (start + window.sum(1) // 2)[:, None])
    assert not torch.equal(released.sum(1), hidden.sum(1))
    position = torch.arange(LENGTH)
    after = position >= (start + window.sum(1))[:, None]
    for canvas in range(2):
        z = shown(rollout)[:, canvas]
        assert torch.equal(z == MASK, rollout.scored[:, canvas] | after)
        assert torch.equal(z[z != MASK], rollout.labels[z != MASK])
    assert torch.equal(rollout.labels, real[:, 0])


def test_curricula_are_functions_of_the_update():
    objective = build(TrajectoryConfig(window=(4, 8)), 16)
    seen = []
    for update in (0, 5, 10, 5):
        assert not objective.begin(update, 11)
        seen.append((objective.smallest_ratio, objective.window))
    assert seen == [(0.0, 4), (0.4, 6), (0.8, 8), (0.4, 6)]
    objective.begin(10, 11)
    rollout = objective.rollout(batch_of(objective, trajectories(50, 16), 50), RowStreams(0, (0,), range(50)))
    assert (rollout.scored.any(1).sum(1) == 8).all()
    assert (rollout.scored[:, 0].sum(1) == 7).all()  # ⌈0.8 · 8⌉
    objective.begin(0, 11)
    rollout = objective.rollout(batch_of(objective, trajectories(200, 16), 200), RowStreams(0, (0,), range(200)))
    assert set(rollout.scored[:, 0].sum(1).tolist()) == {1, 2, 3, 4}
    objective.begin(0, 1)  # a run of a single update


def test_one_canvas_without_the_complement():
    objective, both = build(TrajectoryConfig(complement=False)), build(TrajectoryConfig())
    real, streams = trajectories(8), [RowStreams(0, (0,), range(8)) for _ in range(2)]
    one, two = (
        objective.rollout(batch_of(objective, real, 8), streams[0]),
        both.rollout(batch_of(both, real, 8), streams[1]),
    )
    assert one.hidden.shape == (8, 1, LENGTH)
    assert torch.equal(shown(one)[:, 0], shown(two)[:, 0])


def test_ratios_out_of_range():
    with pytest.raises(ValidationError, match=r"smallest_ratio is \(0.0, 0.9\)"):
        TrajectoryConfig(smallest_ratio=(0.0, 0.9))


# --- T3D -----------------------------------------------------------------------------------------------------------


def test_t3d_hides_the_last_unmasked_where_the_released_code_hides_the_first():
    objective, real = build(T3DConfig(ratios=[0.5])), trajectories(20)
    rollout = objective.rollout(batch_of(objective, real, 20), RowStreams(0, (0,), range(20)))
    masked = rollout.state.open
    assert torch.equal(masked, real[:, 1] >= LENGTH // 2)
    assert torch.equal(rollout.state.tokens, torch.where(masked, MASK, real[:, 0]))
    assert torch.equal(rollout.guess[~masked], real[:, 0][~masked])
    log_probs = objective.target.log_probs(rollout.state, masked)
    assert torch.equal(rollout.guess[masked], log_probs.argmax(-1))


def test_t3d_draws_ratios_in_proportion_to_their_power():
    objective, real = build(T3DConfig(ratios=[1.0, 0.5], exponent=2.0)), trajectories(2000)
    rollout = objective.rollout(batch_of(objective, real, 2000), RowStreams(0, (0,), range(2000)))
    share = rollout.state.open.double().mean(1)
    assert set(share.tolist()) == {1.0, 0.5}
    assert abs(float((share == 1).double().mean()) - 0.8) < 0.03


def test_path_weights_against_the_levels_one_by_one():
    masked = torch.tensor([[True] * 7 + [False] * 3, [True] * 10, [True] + [False] * 9])
    rank = unmasking_rank(orders(3), masked, torch.zeros(3, 10).double())
    found = path_weights(rank, masked, 3)
    for row, size in enumerate((7, 10, 1)):
        expected = torch.zeros(10).double()
        levels = range(-(-size // 3))
        for s in levels:
            level = masked[row] & (rank[row] < min(3 * (s + 1), size))
            expected += level / level.sum() / len(levels)
        torch.testing.assert_close(found[row], expected)
        assert found[row].sum() == pytest.approx(1)


def test_t3d_loss_by_hand():
    objective = build_tabular(T3DConfig(alpha=0.7, beta=0.3, path_weight=0.4, ratios=[1.0, 0.67], guess="drawn"))
    with torch.no_grad():
        objective.target.table.add_(torch.randn(objective.target.table.shape, generator=torch.manual_seed(2)))
    x = all_sequences(3, 3)[::4]
    real = torch.stack([x, orders(len(x), 3)], 1)
    rollout = objective.rollout(batch_of(objective, real, len(x)), RowStreams(0, (0,), range(len(x))))
    total = 0.0
    for row in range(len(x)):
        z, masked = rollout.state.tokens[row], rollout.state.open[row]
        ours, past = (says(n, z[None])[0].double() for n in (objective.student, objective.target))
        at = masked.nonzero().squeeze(1)
        ratios = [(ours[at, t[row, at]] - past[at, t[row, at]]).mean() for t in (x, rollout.guess)]
        total -= torch.sigmoid(0.3 * ratios[0]).log() + 0.7 * torch.log(1 - torch.sigmoid(0.3 * ratios[1]))
        total -= 0.4 * (rollout.path[row, at] * ours[at, x[row, at]]).sum()
    out = objective.loss("student", rollout)
    torch.testing.assert_close(out.sum, total, rtol=1e-5, atol=1e-5)
    out.sum.backward()
    assert objective.student.table.grad.abs().max() > 1e-3
    assert objective.target.table.grad is None


def test_t3d_at_full_slope_is_least_at_the_law_of_the_teachers_tokens():
    """One masked position, guesses drawn, α = β = 1: a discriminator between the two laws is at its best there."""
    config = T3DConfig(alpha=1.0, beta=1.0, path_weight=0.0, guess="drawn")
    objective = build_tabular(config, length=1)
    law = torch.tensor([0.5, 0.3, 0.2]).double()
    past = says(objective.target, torch.tensor([[3]]))[0, 0, :3].double().exp().detach()
    pairs = all_sequences(3, 2)  # the teacher's token, the reference's
    weight = law[pairs[:, 0]] * past[pairs[:, 1]]
    z = torch.full((9, 1), 3)
    state = Canvas.of(z, 3)
    theirs = objective.target.features(state).detach()
    rollout = T3DRollout(pairs[:, :1], pairs[:, 1:], state, theirs, torch.ones(9, 1).double())
    gradients = []
    for table in (law, past):
        with torch.no_grad():
            objective.student.table[3, 0, :3] = table.log()
        losses = torch.stack([objective.loss("student", rollout.rows(slice(i, i + 1))).sum for i in range(9)])
        gradients.append(torch.autograd.grad((weight * losses).sum(), objective.student.table)[0][3, 0, :3])
    assert gradients[0].abs().max() < 1e-6
    assert gradients[1].abs().max() > 1e-3
    # at the reference itself: log 2 + α log 2
    torch.testing.assert_close(ddo(torch.zeros(1), torch.zeros(1), 0.5, 0.1), 1.5 * torch.full((1,), 2.0).log())


def test_t3d_asks_its_reference_once_an_update():
    objective = build(T3DConfig())
    before = objective.target.tally.passes
    rollout = objective.rollout(batch_of(objective, trajectories(4), 4), RowStreams(0, (0,), range(4)))
    objective.loss("student", rollout)
    assert objective.target.tally.passes - before == 4


def test_t3d_renews_its_reference_when_a_round_starts():
    objective = build(T3DConfig(rounds=3))
    assert [u for u in range(9) if objective.begin(u, 9)] == [3, 6]
    assert round_starts(10, 1) == set()
    assert not any(p.requires_grad for p in objective.target.parameters())
    same = zip(objective.target.parameters(), objective.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_t3d_ratios_out_of_range():
    with pytest.raises(ValidationError, match=r"ratios is \[0.0\]"):
        T3DConfig(ratios=[0.0])


# --- constrained order -------------------------------------------------------------------------------------------


def test_states_of_a_trajectory_are_equally_likely():
    objective, real = build(ConstrainedOrderConfig()), trajectories(4000, at_once=3)
    assert (objective.needs, objective.candidates) == ("trajectories", 4)
    rollout = objective.rollout(batch_of(objective, real, 4000), RowStreams(0, (0,), range(4000)))
    hidden = rollout.scored[:, 0]
    assert torch.equal(shown(rollout)[:, 0], torch.where(hidden, MASK, real[:, 0]))
    first = real[:, 1].masked_fill(~hidden, LENGTH).amin(1)
    assert torch.equal(hidden, state_before(real[:, 1], first))
    share = torch.bincount(first) / 4000
    assert len(share) == 4  # passes of 3, 3, 3 and 1 tokens
    assert ((share - 0.25).abs() < 0.03).all()


@pytest.mark.parametrize("weight", ["elbo", "uniform"])
def test_constrained_order_loss_by_hand(weight):
    objective = build_tabular(ConstrainedOrderConfig(weight=weight))
    x = all_sequences(3, 3)[::5]
    real = torch.stack([x, orders(len(x), 3)], 1)
    rollout = objective.rollout(batch_of(objective, real, len(x)), RowStreams(0, (0,), range(len(x))))
    total = 0.0
    for row in range(len(x)):
        z, masked = shown(rollout, 3)[row, 0], rollout.scored[row, 0]
        log_p = says(objective.student, z[None])[0][masked, x[row, masked]]
        share = masked.double().mean()
        total -= (1 / share if weight == "elbo" else 1.0) * log_p.sum() / 3
    torch.testing.assert_close(objective.loss("student", rollout).sum, total)


@pytest.mark.parametrize("weight", ["elbo", "uniform"])
def test_constrained_order_is_least_at_the_law_of_the_rows_given_the_states(weight):
    rows = all_sequences(3, 3).repeat_interleave(torch.arange(1, 28) % 5 + 1, 0)
    order = orders(len(rows), 3)
    # some states would show rows one of whose tokens never occurs; every token of every state must
    rows, order = rows.repeat(6, 1), torch.cat([order[:, p] for p in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0],
                                                                      [2, 0, 1], [2, 1, 0])])  # fmt: skip
    order[rows[:, 0] == 0] = torch.tensor([0, 1, 2])  # the order depends on the tokens, as the teacher's does
    objective = build_tabular(ConstrainedOrderConfig(weight=weight))
    states = torch.stack([state_before(order, torch.full((len(rows),), n)) for n in range(3)])
    empirical_law(objective.student, rows, states)
    labels, masked = rows.repeat(3, 1), states.flatten(0, 1)
    rollout = CanvasRollout(Canvas.blank(len(labels), 3, 3), labels, masked[:, None], masked[:, None])
    objective.loss("student", rollout).sum.backward()
    assert objective.student.table.grad.abs().max() < 1e-8
    other = TabularDenoiser(4, 3, 0)
    objective.student.table.data.copy_(other.table)
    objective.student.zero_grad()
    objective.loss("student", rollout).sum.backward()
    assert objective.student.table.grad.abs().max() > 1


@pytest.mark.parametrize("config", [TrajectoryConfig(window=(4, 4)), T3DConfig(), ConstrainedOrderConfig()])
def test_gradient_does_not_depend_on_how_the_batch_is_split(config):
    objective = build(config)
    if config.name == "t3d":  # away from the reference, where the two terms differ
        with torch.no_grad():
            for p in objective.student.parameters():
                p.add_(0.1 * torch.randn_like(p))
    assert_splits_alike(objective, trajectories(8))
