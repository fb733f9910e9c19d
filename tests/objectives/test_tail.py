"""What follows an answer's end counts little, in every objective, and nothing else changes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from objectives.certainty import draw_block
from objectives.tail import Tail, balanced, tail_weights, weighted
from teachers.canvas import Batch, Canvas
from teachers.randomness import RowStreams
from tests.batches import prompted
from tests.objectives.kinds import KINDS, LENGTH, MASK, ROWS, objective_of, results

EOS, PROMPT = 0, 2
NAMES = [*KINDS, "elbo", "autoregressive"]
BY_ROW = {"didi_instruct", "representation_mmd", "representation_mmd, sequence"}
"""Whose rewards hold the weights: the law of a row is that of all its tokens."""


def answers(length=3):
    """Rows with a prompt of two tokens, an answer of ``length``, the end, and a tail."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(1, MASK, (ROWS, LENGTH), generator=generator)
    labels[:, PROMPT + length :] = EOS
    order = torch.rand(ROWS, LENGTH, generator=generator).argsort(1)
    open_ = (torch.arange(LENGTH) >= PROMPT).expand(ROWS, -1)
    return prompted(Batch(Canvas.blank(ROWS, LENGTH, MASK), labels, order), open_)


def streams():
    return RowStreams(0, (0,), range(ROWS))


# --- the function ----------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    """An end-of-text token in the prompt ends nothing, and what is not open counts nothing."""
    text = torch.tensor([[EOS, 5, 6, EOS, EOS, EOS, EOS, 3, EOS, EOS]])
    open_ = torch.tensor([[False] + [True] * 9])
    weights = tail_weights(text, open_, (EOS,), 0.5)
    raw = torch.tensor([0, 1, 1, 1, *[0.25] * 6])  # 3 tokens and their end, and half as much in six
    torch.testing.assert_close(weights[0], raw * 9 / 4.5)
    earlier = tail_weights(text, open_, (EOS, 5), 1.0)  # the first token ends it as well
    torch.testing.assert_close(earlier[0], torch.tensor([0, 1, *[1 / 8] * 8]) * 9 / 2)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 9.0])
def test_of_every_text_the_tail_counts_at_most_its_share(share):
    text = torch.tensor(list(itertools.product([EOS, 1], repeat=6)))
    open_ = torch.tensor([True, False, True, True, True, True]).expand_as(text)
    weights = tail_weights(text, open_, (EOS,), share)
    torch.testing.assert_close(weights.sum(1), open_.sum(1).float())
    for row, tokens in zip(weights, text, strict=True):
        places = [i for i in range(6) if open_[0, i]]
        end = next((n for n, i in enumerate(places) if tokens[i] == EOS), len(places) - 1)
        answer, tail = row[places[: end + 1]], row[places[end + 1 :]]
        assert row[1] == 0
        assert (answer == answer[0]).all()
        assert (tail <= answer[0] + 1e-6).all()
        assert float(tail.sum()) <= share * float(answer.sum()) + 1e-5
        if len(tail) and share * len(answer) <= len(tail):
            torch.testing.assert_close(tail.sum(), share * answer.sum())


def test_a_text_without_an_end_has_no_tail():
    text, open_ = torch.full((2, 5), 3), torch.tensor([[True] * 5, [False] * 5])
    assert tail_weights(text, open_, (EOS,), 0.1).tolist() == [[1.0] * 5, [0.0] * 5]
    assert Tail(None, (EOS,)).weights(text, open_) is None
    assert Tail(0.5).weights(text, open_) is None


def test_weights_become_balanced_within_a_part():
    part = torch.tensor([[True, True, False], [False, False, False]])
    out = balanced(torch.tensor([[1.0, 3.0, 9.0], [1.0, 1.0, 1.0]]), part)
    assert out.tolist() == [[0.5, 1.5, 0.0], [0.0, 0.0, 0.0]]


def test_blocks_are_drawn_by_what_they_count():
    """Of weights 1, 1, 1, ¼ … the first block of four has 3¼ of 4½, and the last one, of two, ½."""
    open_ = torch.tensor([[False] + [True] * 10]).expand(900, -1)
    weights = torch.tensor([[0, 1, 1, 1, *[0.25] * 7]]).expand(900, -1)
    start, end = draw_block(open_, 4, (torch.arange(900, dtype=torch.float64) + 0.5) / 900, weights)
    blocks, counts = torch.stack([start, end], 1).unique(dim=0, return_counts=True)
    assert blocks.tolist() == [[0, 4], [4, 8], [8, 10]]
    assert counts.tolist() == [round(900 * part / 4.75) for part in (3.25, 1, 0.5)]
    assert draw_block(torch.zeros(1, 3).bool(), 2, torch.zeros(1), torch.zeros(1, 3))[1].tolist() == [0]


# --- in objectives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tail_that_counts_in_full_is_as_any_text(name):
    """Weights of 1 give what no weights give, up to the draw of a block: rollouts, losses, gradients and metrics."""
    plain, full = objective_of(name), objective_of(name, Tail(1e6, (EOS,)))
    without, rollout = plain.rollout(answers(), streams()), full.rollout(answers(), streams())
    assert without.weights is None
    expected = answers().canvas.open.float()
    if name in ("certainty", "certainty, sampler", "trajectory"):  # only what is drawn to be scored has a weight
        rollout = replace(without, weights=expected)
    assert torch.equal(rollout.weights, expected)
    for phase in plain.phases:
        expected, found = results(plain, phase, without), results(full, phase, rollout)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_make_one_batch(name):
    """Losses and gradients add up, and counts are of the whole."""
    objective = objective_of(name, Tail(0.3, (EOS,)))
    rollout = objective.rollout(answers(), streams())
    for phase in objective.phases:
        loss, count, *_ = results(objective, phase, rollout)
        assert loss.isfinite()
        assert count > 0
        whole = [p.grad for p in objective.networks[phase].parameters() if p.grad is not None]
        objective.networks[phase].zero_grad()
        total, terms = 0.0, 0
        for start in range(0, ROWS, objective.group):
            part = rollout.rows(slice(start, start + objective.group))
            out = objective.loss(phase, part)
            out.sum.backward()
            total, terms = total + out.sum.detach(), terms + objective.count(phase, part)
        torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-5)
        assert terms == count
        parts = [p.grad for p in objective.networks[phase].parameters() if p.grad is not None]
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def gradients_at_positions(objective, phase, rollout):
    """(B, L) whether any loss of the phase's network pulls at what its head reads of a position."""
    network, kept = objective.networks[phase], []
    network = getattr(network, "backbone", network)
    name = "hidden_states" if network is not objective.networks[phase] else "features"
    original = getattr(network, name)

    def asking(canvas, select=None, **more):
        out = original(canvas, select) if name == "features" else original(canvas, *[select][: select is not None])
        if out.requires_grad:
            out.retain_grad()
            kept.append((out, select if name == "features" else None))
        return out

    setattr(network, name, asking)
    try:
        objective.loss(phase, rollout).sum.backward()
    finally:
        delattr(network, name)
    pulled = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    for out, select in kept:
        moved = (out.grad != 0).any(-1) if out.grad is not None else torch.zeros(out.shape[:-1], dtype=torch.bool)
        if select is None:
            for part in moved.split(ROWS):
                pulled |= part
        else:
            pulled |= torch.zeros_like(pulled).masked_scatter(select.expand(ROWS, -1), moved)
    return pulled


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_ROW and "step_reduction" not in name])
def test_a_tail_that_counts_nothing_has_no_pull(name):
    """The text is data where the objective has some, and else what the student wrote: here, with ends in it."""
    objective = objective_of(name, Tail(0.0, (EOS,)))
    rollout = objective.rollout(answers(), streams())
    counted = rollout.weights > 0
    assert not counted[answers().canvas.open].all(), "there is a tail"
    for phase in objective.phases:
        pulled = gradients_at_positions(objective, phase, rollout)
        assert pulled.any()
        assert not (pulled & ~counted).any()


def test_a_reward_of_whole_rows_leaves_the_tail_out_of_the_reward_alone():
    """The discriminator's mean over a row is that of its answer; the score function is of all tokens."""
    objective = objective_of("didi_instruct", Tail(0.0, (EOS,)))
    rollout = objective.rollout(answers(), streams())
    reward = objective.ratio.reward(rollout.fake, rollout.sample)
    mean = (weighted(reward, rollout.weights) * rollout.fake.open).sum(1) / rollout.fake.open.sum(1).clamp(min=1)
    other = torch.where(rollout.weights > 0, reward, torch.full_like(reward, 100.0))
    again = (weighted(other, rollout.weights) * rollout.fake.open).sum(1) / rollout.fake.open.sum(1).clamp(min=1)
    assert torch.equal(mean, again)
    assert gradients_at_positions(objective, "student", rollout)[rollout.revealed.any(1)].any()
