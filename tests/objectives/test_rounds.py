"""What the objectives in rounds share: the schedule, the target, and how losses split, chunk and stay apart."""

import pytest
import torch

from objectives import DISTILLERS
from objectives.consistency import ConsistencyConfig
from objectives.objective import Distillation
from objectives.redi import RediConfig
from objectives.sdtt import SdttConfig
from teachers import chunks
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of
from tests.objectives.test_integral_kl import MASK, VOCABULARY, real_rows, small_objective
from tests.objectives.wiring import tensors_of
from tests.tabular import TabularDenoiser

CONFIGS = {
    "sdtt": SdttConfig(first_steps=8),
    "sdtt, total variation": SdttConfig(first_steps=8, divergence="total_variation"),
    "sdtt, mean squared": SdttConfig(first_steps=8, divergence="mean_squared", target_steps=3),
    "consistency": ConsistencyConfig(first_steps=64),
    "consistency, forward": ConsistencyConfig(first_steps=64, divergence="forward_kl", boundary=0.5),
    "redi": RediConfig(steps=3),
    "redi, random": RediConfig(steps=3, random_share=0.5),
}


def rollout(objective, rows=8):
    return objective.rollout(batch_of(objective, real_rows(rows), rows), RowStreams(0, (0,), range(rows)))


def result(objective, drawn, size=8):
    """The loss and its gradient, in micro-batches of ``size`` rows."""
    objective.student.zero_grad()
    total = 0.0
    for start in range(0, len(drawn), size):
        out = objective.loss("student", drawn.rows(slice(start, start + size)))
        out.sum.backward()
        total += out.sum.detach()
    return total, [p.grad.clone() for p in objective.student.parameters()]


def assert_close(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_neither_splits_nor_chunks_nor_other_rows_change_anything(name, monkeypatch):
    objective = small_objective(CONFIGS[name])
    drawn = rollout(objective)
    whole = result(objective, drawn)
    assert whole[0] > 0
    assert_close(result(objective, drawn, 1), whole)
    few = objective.rollout(batch_of(objective, real_rows(8)[3:5], 2), RowStreams(0, (0,), range(3, 5)))
    for field, value in tensors_of(drawn).items():  # a row's draws are its own, whatever is beside it
        torch.testing.assert_close(tensors_of(few)[field], value[3:5], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 7 * VOCABULARY)
    chunked = rollout(objective)
    for field, value in tensors_of(drawn).items():
        torch.testing.assert_close(tensors_of(chunked)[field], value)
    assert_close(result(objective, chunked), whole)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_student_learns(name):
    objective = small_objective(CONFIGS[name])
    for update in (0, 5):  # from the teacher, then from the target
        objective.begin(update, 6)
        result(objective, rollout(objective))
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.student.parameters())
        assert all(p.grad is None for network in (objective.teacher, objective.target) for p in network.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_passes_do_not_depend_on_the_data_and_an_empty_loss_is_a_connected_zero(name, monkeypatch):
    """Passes and head calls are collective under ZeRO 3, and for a sharded teacher."""
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 7 * VOCABULARY)
    objective = small_objective(CONFIGS[name])
    calls = []
    objective.teacher.collective = objective.student.collective = True
    for module in (m for n in (objective.teacher, objective.student) for m in (n.model.base_model, n.model.lm_head)):
        module.register_forward_hook(lambda m, *_: calls.append(m))
    drawn = rollout(objective)
    result(objective, drawn)
    usual = list(calls)
    calls.clear()
    monkeypatch.setattr(objective.process.__class__, "alpha", lambda self, t: torch.ones_like(t))  # no noise at all
    monkeypatch.setattr(objective.process.__class__, "reveal_probability", lambda self, t, s: torch.ones_like(t))
    empty = rollout(objective)
    assert objective.count("student", empty) == 0
    loss, gradients = result(objective, empty)
    assert calls == usual
    assert loss == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("name", CONFIGS)
def test_later_rounds_ask_the_target_and_no_longer_the_teacher(name):
    objective = small_objective(CONFIGS[name])
    assert objective.target is not objective.student
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in objective.target.parameters())

    def drawn_with(changed):
        with torch.no_grad():
            for p in changed.parameters():
                p.add_(0.2)
            drawn = rollout(objective)
            loss = objective.loss("student", drawn).sum
            for p in changed.parameters():
                p.sub_(0.2)
        return loss

    objective.begin(5, 6)
    with torch.no_grad():
        plain = objective.loss("student", rollout(objective)).sum
    torch.testing.assert_close(drawn_with(objective.teacher), plain, rtol=1e-4, atol=1e-4)
    assert (drawn_with(objective.target) - plain).abs() > 1e-2


def test_rounds_are_equal_parts_of_the_run_or_so_many_updates():
    config = SdttConfig()
    objective = config.build(
        Distillation(TabularDenoiser(3, 2, 0), TabularDenoiser(3, 2, 0), MaskedProcess(), 2, TabularDenoiser(3, 2, 0))
    )
    refreshed, steps = [], []
    for update in range(21):
        if objective.begin(update, 21):
            refreshed.append(update)
        steps.append(round(1 / objective.dt))
    assert refreshed == [3, 6, 9, 12, 15, 18]
    assert steps[::3] == [1024, 512, 256, 128, 64, 32, 16]  # whose pairs make a student of 512 … 8 steps
    assert [SdttConfig(round_updates=4, rounds=3).round_of(u, 100) for u in (0, 3, 4, 8, 99)] == [0, 0, 1, 2, 2]
    # fewer updates than rounds: some are passed over, and none is refreshed twice
    assert [update for update in range(3) if objective.begin(update, 3)] == [1, 2]
    # a function of the update alone, as a resumed run needs it
    objective.begin(20, 21)
    assert objective.begin(6, 21)
    assert objective.round == 2
    assert not objective.begin(7, 21)
    assert objective.round == 2


def test_every_objective_in_rounds_can_be_named():
    names = [config.model_fields["name"].default for config in DISTILLERS]
    assert {"sdtt", "consistency", "redi"} <= set(names)
    assert small_objective(CONFIGS["redi"]).student.spec.mask_id == MASK
