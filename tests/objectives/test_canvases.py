"""Prompts, suffixes, infilling and padding: they are read, and neither written, corrupted, counted nor learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from objectives.elbo import edited
from objectives.objective import Distillation, one_prompt_a_group
from objectives.tail import Tail
from students.samplers import Threshold
from students.student import trainable_copy
from teachers import randomness
from teachers.canvas import Batch, Canvas
from teachers.denoiser import DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import prompted
from tests.objectives.kinds import KINDS, LEFT, LENGTH, MASK, PADDED, RIGHT, ROWS, VOCABULARY, objective_of, results

INFILLING = torch.tensor([False, False] + [True] * 4 + [False] + [True] * 3 + [False])  # a prompt, a gap, a suffix


def spec(**settings):
    return DenoiserSpec(MASK, VOCABULARY, 2 * PADDED, **settings)


def infilling():
    """Rows with a prompt, a token that is given in the middle, and a suffix."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, MASK, (ROWS, LENGTH), generator=generator)
    order = torch.rand(ROWS, LENGTH, generator=generator).argsort(1)
    return prompted(Batch(Canvas.blank(ROWS, LENGTH, MASK), labels, order), INFILLING.expand(ROWS, LENGTH))


def padded(batch):
    """The same rows with padding on both sides."""
    blank = Batch(Canvas.blank(ROWS, LENGTH, MASK), batch.labels, batch.order)
    return prompted(blank, batch.canvas.open, LEFT, RIGHT, pad=5)


def positions(tensor):
    """Without the padding: whichever dimension is as long as a padded row."""
    for axis, size in enumerate(tensor.shape):
        if axis and size == PADDED:
            return tensor.narrow(axis, LEFT, LENGTH)
    return tensor


@pytest.fixture
def same_draws(monkeypatch):
    """Every real position of a padded row gets what it would get in the row without padding."""
    plain = randomness._of_streams

    def drawn(streams, size, dtype):
        axis = next((a for a, n in enumerate(size) if n in (PADDED, PADDED + 1)), None)
        if axis is None:
            return plain(streams, size, dtype)
        own = size[axis] - PADDED  # a number of the row's own stands before those of its positions
        values = plain(streams, (*size[:axis], LENGTH + own, *size[axis + 1 :]), dtype)
        out = torch.full(tuple(size), 0.5, dtype=values.dtype)
        out.narrow(axis, 0, own).copy_(values.narrow(axis, 0, own))
        out.narrow(axis, own + LEFT, LENGTH).copy_(values.narrow(axis, own, LENGTH))
        return out

    monkeypatch.setattr(randomness, "_of_streams", drawn)


@pytest.mark.parametrize("name", [*KINDS, "elbo", "autoregressive"])
def test_padding_on_both_sides_changes_nothing(name, same_draws):
    """Rollout, loss, count, metrics and gradient are those of the canvas without padding."""
    one, two = objective_of(name), objective_of(name)  # a rollout renews a discriminator's spectral norms
    plain = one.rollout(infilling(), RowStreams(0, (0,), range(ROWS)))
    rollout = two.rollout(padded(infilling()), RowStreams(0, (0,), range(ROWS)))
    for part, value in plain.parts().items():
        other = rollout.parts()[part]
        if not isinstance(value, Canvas):
            torch.testing.assert_close(positions(other), value, rtol=1e-4, atol=1e-5, msg=part)
            continue
        assert torch.equal(positions(other.tokens), value.tokens), part
        assert torch.equal(positions(other.open), value.open), part
        assert not (other.open & ~other.real).any(), part
        assert value.time is None or torch.equal(other.time, value.time), part
    for phase in one.phases:
        expected, found = results(one, phase, plain), results(two, phase, rollout)
        assert expected[0].abs() > 0
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*KINDS, "elbo", "autoregressive"])
def test_what_is_given_is_neither_written_nor_corrupted_nor_asked(name):
    """In every part of a rollout prompts hold their tokens, and no loss asks a head about them."""
    objective = objective_of(name)
    batch = one_prompt_a_group(padded(infilling()), objective.group)
    given, real = ~batch.canvas.open, batch.canvas.real
    shown = given & real
    rollout = objective.rollout(batch, RowStreams(0, (0,), range(ROWS)))
    for part, value in rollout.parts().items():
        canvas = value if isinstance(value, Canvas) else None
        tokens = value if canvas is None else canvas.tokens
        if canvas is not None:
            assert not (canvas.open & given).any(), part
            assert torch.equal(canvas.real, real), part
        if tokens.dtype == torch.int64 and tokens.shape[-1] == PADDED and part not in ("hidden", "scored"):
            each = tokens.view(ROWS, -1, PADDED)
            expected = batch.labels[:, None].expand_as(each)
            assert torch.equal(each[shown[:, None].expand_as(each)], expected[shown[:, None].expand_as(each)]), part
        if tokens.dtype == torch.bool:
            assert not (tokens.view(ROWS, -1, PADDED) & given[:, None]).any(), part
    asked = []
    for network in {objective.student, *objective.networks.values()}:
        if hasattr(network, "features"):
            network.features = spy(network.features, asked)
    for phase in objective.phases:
        objective.loss(phase, rollout)
    assert asked or objective_keeps_features(rollout)
    for select in asked:
        assert not (select & given[: len(select)]).any()


def objective_keeps_features(rollout):
    """A planner that trains alone reads what its rollout has kept."""
    return getattr(rollout, "features", None) is not None


def spy(features, asked):
    def asking(canvas, select=None):
        assert select is not None, "a loss that asks every position"
        asked.append(select)
        return features(canvas, select)

    return asking


@pytest.mark.parametrize("name", ["integral_kl", "sdtt", "certainty", "step_reduction", "elbo"])
def test_a_row_with_nothing_to_write_adds_nothing(name):
    objective, batch = objective_of(name), infilling()
    nothing = torch.zeros(2, LENGTH, dtype=torch.bool)
    canvas = batch.canvas
    done = replace(
        canvas,
        tokens=torch.cat([batch.labels[:2], canvas.tokens[2:]]),
        open=torch.cat([nothing, canvas.open[2:]]),
    )
    rollout = objective.rollout(replace(batch, canvas=done), RowStreams(0, (0,), range(ROWS)))
    for phase in objective.phases:
        whole, rest = objective.loss(phase, rollout).sum, objective.loss(phase, rollout.rows(slice(2, ROWS))).sum
        assert whole.isfinite()
        torch.testing.assert_close(whole, rest, rtol=1e-4, atol=1e-5)


def test_edits_stay_within_what_is_open():
    """What an insertion moves goes past the gap, and what moves out at the end is lost: the suffix stays."""
    rows = 500
    x0 = torch.arange(LENGTH).clamp(max=7).expand(rows, -1).clone()
    open_ = INFILLING.expand(rows, -1)
    out = edited(x0, open_, torch.full((rows,), 3), spec(), RowStreams(0, (0,), range(rows)), 3)
    assert torch.equal(out[~open_], x0[~open_])
    assert (out[open_] != x0[open_]).any()
    compact = edited(
        x0[:, INFILLING], torch.ones(rows, 7).bool(), torch.full((rows,), 3), spec(),
        RowStreams(0, (0,), range(rows)), 3,
    )  # fmt: skip
    assert torch.equal(out[:, INFILLING], compact), "as a row of the open tokens alone"


# --- step reduction --------------------------------------------------------------------------------------------------


def test_passes_that_a_stopped_row_did_not_make_are_not_trained():
    """A text that has ended takes no pass any more, though its tail was never written: nor has it a loss there."""
    sampler = Threshold(threshold=0.9, block_length=2, stop=True)
    objective = objective_of("step_reduction, all", Tail(0.5, (0,)), sampler)
    config = objective.config.model_copy(update={"steps": 8})
    objective.config = objective.verifier.config = objective.policy.config = config
    for network in (objective.student, objective.first):
        network.spec = replace(network.spec, eos_id=0)
    objective.begin(3, 4)
    open_ = torch.arange(LENGTH) >= 2
    batch = prompted(infilling(), open_.expand(ROWS, -1))
    rollout = objective.rollout(batch, RowStreams(0, (0,), range(ROWS)))
    ended = ~(rollout.commits.any(1) | ~open_).all(1)
    assert ended.any()
    assert not ended.all()
    assert (rollout.sample[ended][~rollout.commits.any(1)[ended] & open_] == 0).all(), "filled with end tokens"
    assert (rollout.steps[ended].amax() < rollout.steps[~ended].amax()) & (rollout.advantage[:, -1] == 0)[ended].all()
    asked = []
    features = objective.student.features
    objective.student.features = lambda canvas, select=None: asked.append(len(canvas)) or features(canvas, select)
    loss = objective.loss("student", rollout).sum
    assert loss.isfinite()
    made = [int((rollout.steps > n).sum()) for n in range(8)]
    assert asked == [rows for rows in made if rows]


def test_what_the_start_takes_is_measured_after_prompts():
    """The same on every process: of the run's first prompts, not of the batch; blank rows where there are none."""
    config, sampler = KINDS["step_reduction"]
    batch = infilling()
    teacher = objective_of("step_reduction").teacher
    distillation = Distillation(teacher, trainable_copy(teacher), MaskedProcess(), LENGTH, teacher, sampler)
    torch.manual_seed(0)
    objective = config.build(replace(distillation, prompted=batch.canvas))
    seen = []
    objective.policy.trajectory = lambda network, canvas, *more: seen.append(canvas) or raise_()
    with pytest.raises(StopIteration):
        objective.pass_cost.start(torch.device("cpu"))
    assert torch.equal(seen[0].open[:ROWS], batch.canvas.open)
    assert torch.equal(seen[0].tokens[ROWS : 2 * ROWS], batch.canvas.tokens)
    assert distillation.canvases(3, "cpu").open.all()


def raise_():
    raise StopIteration
