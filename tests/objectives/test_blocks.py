"""Objectives on the blocks of texts: any of them, any parting of the rows, and the law of what they see."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from objectives.blocks import BlocksConfig, InBlocks, behind_end
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from students.samplers import Ancestral
from students.student import frozen, trainable_copy
from teachers.canvas import Batch, Canvas
from teachers.oracle.markov import random_source
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.networks import shape, stock
from tests.objectives.kinds import KINDS

V, LENGTH, SIZE, MASK, EOS, TEXTS = 9, 12, 4, 8, 0, 8
COUNT = LENGTH // SIZE
ENDS = torch.tensor([12, 3, 8, 12, 6, 12, 1, 12])  # where each text's end token is; 12 where it has none
TEACHERS = {
    "block": lambda: network(),
    "shifted": lambda: network(shift=True),
    "full": lambda: network(attention="full", block_size=None),
    "larger blocks": lambda: network(block_size=LENGTH),
    "exact": lambda: random_source(V - 1, 1, 1.0, 0, LENGTH),
}


def network(**spec):
    values = {"attention": "block", "block_size": SIZE, "eos_id": EOS, **spec}
    return stock(V, LENGTH, MASK, sizes=shape(initializer_range=0.3), **values)


def objective_of(name, teacher="block", prefix="data"):
    config, sampler = KINDS[name]
    teacher = frozen(TEACHERS[teacher]())
    student = trainable_copy(network(shift=teacher.spec.shift))
    torch.manual_seed(1)
    whole = Distillation(teacher, student, MaskedProcess(), LENGTH, student, sampler)
    inner = config.build(replace(whole, length=SIZE))
    whole = replace(whole, sampler=Ancestral(block_length=SIZE, budget="block"))
    objective = InBlocks(inner, BlocksConfig(prefix=prefix), whole, config.most_steps)
    with torch.no_grad():
        for phase in objective.phases:
            for parameter in objective.networks[phase].parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    objective.begin(0, 4)
    return objective


def batch_of(ends=ENDS):
    """Texts with a prompt of two tokens, each filled up with end tokens behind its own."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(1, MASK, (TEXTS, LENGTH), generator=generator)
    order = torch.rand(TEXTS, LENGTH, generator=generator).argsort(1)
    column = torch.arange(LENGTH)
    labels = torch.where(column < ends[:, None], labels, EOS)
    open_ = (column >= 2).expand(TEXTS, -1)
    tokens = torch.where(open_, MASK, labels)
    return Batch(Canvas(tokens, open_), labels, torch.where(open_, order, -1))


def streams(update=5):
    return RowStreams(0, (update,), range(TEXTS))


def results(objective, phase, parts):
    """Loss and count of the parts together, and the gradients."""
    objective.networks[phase].zero_grad()
    loss, count = 0.0, 0
    for part in parts:
        out = objective.loss(phase, part)
        if out.sum.requires_grad:
            out.sum.backward()
        loss, count = loss + float(out.sum.detach()), count + int(objective.count(phase, part))
    trained = [p for p in objective.networks[phase].parameters() if p.requires_grad]
    return loss, count, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


def same(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-4, rel=1e-4)
    assert one[1] == other[1]
    for ours, theirs in zip(one[2], other[2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-3)


# --- every objective ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if "random" not in name])
def test_texts_may_be_parted_anywhere(name):
    """Micro-batches of texts, and blocks read one by one: the loss and the gradient stay what they are."""
    objective = objective_of(name)
    rollout = objective.rollout(batch_of(), streams())
    assert len(rollout) == TEXTS
    assert len(rollout.blocks) == TEXTS * COUNT
    group = objective.group
    for phase in objective.phases:
        whole = results(objective, phase, [rollout])
        assert whole[1] > 0
        assert any(bool((gradient != 0).any()) for gradient in whole[2])
        same(whole, results(objective, phase, [rollout.rows(slice(n, n + group)) for n in range(0, TEXTS, group)]))
        one_by_one = [rollout.blocks.rows(slice(n, n + group)) for n in range(0, TEXTS * COUNT, group)]
        same(whole, results(objective.objective, phase, one_by_one))


@pytest.mark.parametrize("name", [name for name in KINDS if "random" not in name])
def test_blocks_behind_the_end_are_neither_counted_nor_learned(name):
    """Texts that end in their first block are as texts of one block."""
    objective = objective_of(name)
    rollout = objective.rollout(batch_of(torch.full((TEXTS,), 3)), streams())
    group = objective.group
    first = [n + m for n in range(0, TEXTS * COUNT, COUNT * group) for m in range(group)]
    for phase in objective.phases:
        parts = [rollout.blocks.rows(slice(n, n + group)) for n in first[::group]]
        same(results(objective, phase, [rollout]), results(objective.objective, phase, parts))


@pytest.mark.parametrize("teacher", list(TEACHERS))
@pytest.mark.parametrize("name", ["integral_kl", "sdtt", "certainty", "trajectory", "step_reduction"])
def test_teachers_that_read_further_than_a_block(name, teacher):
    objective = objective_of(name, teacher)
    rollout = objective.rollout(batch_of(), streams())
    for phase in objective.phases:
        loss, count, gradients = results(objective, phase, [rollout])
        assert loss == pytest.approx(loss)
        assert count > 0
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("name", ["integral_kl", "step_reduction"])
def test_a_text_does_not_depend_on_those_beside_it(name):
    objective = objective_of(name, prefix="student")
    whole = objective.rollout(batch_of(), streams())
    group = objective.group
    part = slice(group, 2 * group)
    alone = objective.rollout(batch_of().rows(part), RowStreams(0, (5,), range(group, 2 * group)))
    assert torch.equal(whole.rows(part).blocks.sample, alone.blocks.sample)


def test_blocks_are_written_again_behind_the_same_texts():
    objective = objective_of("integral_kl, states twice", prefix="student")
    first, one = objective.rollout(batch_of(), streams()), streams()
    objective.rollout(batch_of(), one)
    again, part = objective.again(first, one), slice(2, 5)
    assert objective.uses == 2
    assert torch.equal(first.blocks.states, again.blocks.states)
    assert torch.equal(first.blocks.canvas.prefix.text, again.blocks.canvas.prefix.text)
    assert not torch.equal(first.blocks.sample, again.blocks.sample)
    own = RowStreams(0, (5,), range(2, 5))
    alone = objective.rollout(batch_of().rows(part), own)
    assert torch.equal(objective.again(alone, own).blocks.sample, again.rows(part).blocks.sample)


# --- what they are given -------------------------------------------------------------------------------------------


def test_the_blocks_of_a_group_stand_behind_the_same_text():
    objective, batch = objective_of("step_reduction"), batch_of()
    canvas = objective.rollout(batch, streams()).blocks.canvas
    assert objective.group == 2
    assert canvas.prefix.block.tolist()[:6] == [0, 0, 1, 1, 2, 2]
    assert torch.equal(canvas.prefix.text, batch.labels[::2].repeat_interleave(6, 0))
    assert torch.equal(canvas.open[:2], torch.tensor([[False, False, True, True]] * 2))  # the prompt is given


def test_passes_of_the_teacher_are_counted_within_a_block():
    objective, seen = objective_of("trajectory"), []
    objective.objective.rollout = lambda batch, randomness: seen.append(batch) or batch
    objective.rollout(batch_of(), streams())
    order = seen[0].order
    assert torch.equal(order.masked_fill(order < 0, 99).amin(1), torch.zeros(TEXTS * COUNT, dtype=torch.long))
    ours, theirs = order[1], batch_of().order[0, SIZE : 2 * SIZE]
    assert torch.equal(ours, theirs - theirs.min())


def test_a_text_ends_where_nothing_but_end_tokens_follow():
    tokens = torch.tensor([[5, 0, 5, 5, 5, 0, 0, 0], [5, 5, 5, 0, 0, 0, 0, 0], [0] * 8, [5] * 8])
    ended = behind_end(tokens, [EOS], 2)
    assert ended[:, ::2].tolist() == [[False, False, False, True], [False, False, True, True],
                                      [False, True, True, True], [False] * 4]  # fmt: skip
    assert torch.equal(ended[:, ::2], ended[:, 1::2])
    assert not bool(behind_end(tokens, [], 2).any())
    several = torch.tensor([[5, 5, 7, 0, 0, 0, 0, 0]])  # the answer ends with 7, and the row is filled up with 0
    assert behind_end(several, [EOS, 7], 2)[0, ::2].tolist() == [False, False, True, True]
    assert behind_end(several, [EOS], 2)[0, ::2].tolist() == [False, False, True, True]


def test_blocks_behind_the_students_own_text_have_its_joint_law():
    """Prefix and redrawn block against q(x_<b) q(x_b | x_<b), enumerated, for a student of one pass a block."""
    size, rows = 2, 4000
    student = stock(3, 4, 2, sizes=shape(initializer_range=1.0), attention="block", block_size=size)
    student.requires_grad_(False)
    sampler, config = Ancestral(block_length=size, budget="block"), IntegralKLConfig(rollout={"steps": [1]})
    whole = Distillation(student, student, MaskedProcess(), 4, student, sampler)
    own = InBlocks(config.build(replace(whole, length=size)), BlocksConfig(prefix="student"), whole, 1)
    assert own.needs == "nothing"
    rollout = own.rollout(Batch(Canvas.blank(rows, 4, 2)), RowStreams(0, (0,), range(rows)))
    second = rollout.blocks.canvas.prefix.block == 1
    drawn = torch.cat([rollout.blocks.canvas.prefix.text[second][:, :size], rollout.blocks.sample[second]], 1)
    every = torch.tensor(list(itertools.product(range(2), repeat=4)))
    law = torch.ones(len(every), dtype=torch.float64)
    for block in range(2):
        row = every.clone()
        row[:, block * size :] = 2
        log_probs = student.log_probs(Canvas.of(row[:, : (block + 1) * size], 2))[:, block * size :].double()
        here = every[:, block * size : (block + 1) * size]
        law *= log_probs.gather(-1, here[..., None]).squeeze(-1).sum(1).exp()
    assert float(law.sum()) == pytest.approx(1)
    assert float(law.max()) > 2 * float(law.mean())
    index = (drawn * torch.tensor([8, 4, 2, 1])).sum(1)
    observed = torch.bincount(index, minlength=16).double()
    expected = law * rows
    assert float(((observed - expected).square() / expected).sum()) < 37.7  # 99.9% of χ² with 15 degrees of freedom


def test_what_the_student_writes_before_its_blocks_is_kept_and_not_read_again(monkeypatch):
    """A pass sends a block, and the one before where that was just finished; texts are those of whole passes."""
    objective, sent = objective_of("integral_kl", prefix="student"), []
    student, read = objective.student, objective.student.window_features
    monkeypatch.setattr(
        student, "window_features", lambda canvas, window: sent.append(window.width) or read(canvas, window)
    )
    batch, steps = Batch(Canvas.blank(TEXTS, LENGTH, MASK)), objective.steps
    kept = objective.rollout(batch, streams()).blocks
    assert steps > 1
    assert len(sent) <= steps * COUNT
    assert set(sent) == {SIZE, 2 * SIZE}, "never the whole text"
    monkeypatch.setattr(student, "capabilities", student.capabilities - {"cache"})
    plain = objective.rollout(batch, streams()).blocks
    assert len(sent) <= steps * COUNT, "no more was sent so"
    assert torch.equal(kept.canvas.prefix.text, plain.canvas.prefix.text)
    assert torch.equal(kept.sample, plain.sample)
