"""Prompts, suffixes, infilling and padding: they are read, and neither written, corrupted, counted nor learned."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from objectives.certainty import CertaintyConfig
from objectives.consistency import ConsistencyConfig
from objectives.constrained_order import ConstrainedOrderConfig
from objectives.didi_instruct import DidiInstructConfig
from objectives.dimo import DimoConfig
from objectives.elbo import Autoregressive, EditConfig, MaskedElbo, edited
from objectives.idlm import IdlmConfig
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from objectives.redi import RediConfig
from objectives.representation_mmd import RepresentationMmdConfig
from objectives.sdtt import SdttConfig
from objectives.step_reduction import StepReductionConfig
from objectives.t3d import T3DConfig
from objectives.trajectory import TrajectoryConfig
from students.samplers import Ancestral, Dilated, Planner, Threshold
from students.student import trainable_copy
from teachers import randomness
from teachers.canvas import Batch, Canvas
from teachers.denoiser import DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import prompted
from tests.networks import shape, stock

VOCABULARY, LENGTH, MASK, ROWS = 9, 11, 8, 8
LEFT, RIGHT = 3, 2
PADDED = LENGTH + LEFT + RIGHT
INFILLING = torch.tensor([False, False] + [True] * 4 + [False] + [True] * 3 + [False])  # a prompt, a gap, a suffix

KINDS = {
    "integral_kl": (IntegralKLConfig(rollout={"steps": [2, 4]}), Ancestral()),
    "integral_kl, dilated": (IntegralKLConfig(rollout={"steps": [2, 4]}, gradient="logit"), Dilated()),
    "integral_kl, adaptive": (IntegralKLConfig(rollout={"steps": [4]}), Threshold(threshold=0.2)),
    "integral_kl, nested": (
        IntegralKLConfig(corruption="nested", rollout={"steps": [2, 4]}, gradient={"exact_share": 0.5}), Ancestral(),
    ),
    "integral_kl, per token": (
        IntegralKLConfig(
            rollout="two_moves", corruption="coupled", gradient="per_token",
            regularisers={"teacher_weight": 0.1, "entropy_bonus": 0.1},
        ),
        Ancestral(),
    ),
    "didi_instruct": (DidiInstructConfig(ratio={"blocks": 1}), Ancestral()),
    "dimo": (DimoConfig(), Ancestral()),
    "idlm": (IdlmConfig(), Ancestral()),
    "representation_mmd": (RepresentationMmdConfig(sets=2, draws=2), Ancestral()),
    "representation_mmd, sequence": (
        RepresentationMmdConfig(sets=2, draws=2, observations="sequence", kernel="linear"), Ancestral(),
    ),
    "sdtt": (SdttConfig(first_steps=8), Ancestral()),
    "consistency": (ConsistencyConfig(first_steps=4), Ancestral()),
    "redi": (RediConfig(steps=3), Ancestral()),
    "redi, random": (RediConfig(steps=3, random_share=0.5), Ancestral()),
    "certainty": (CertaintyConfig(block=3), Ancestral()),
    "trajectory": (TrajectoryConfig(window=(4, 4)), Ancestral()),
    "t3d": (T3DConfig(guess="drawn"), Ancestral()),
    "constrained_order": (ConstrainedOrderConfig(weight="uniform"), Ancestral()),
    "step_reduction": (StepReductionConfig(steps=4, group_size=2), Planner()),
    "step_reduction, all": (
        StepReductionConfig(steps=4, group_size=2, trains="all", verifier="teacher", surrogate=1.0), Threshold(),
    ),
    "step_reduction, discriminator": (
        StepReductionConfig(steps=4, group_size=2, verifier="discriminator", discriminator_blocks=1), Planner(),
    ),
}  # fmt: skip


def spec(**settings):
    return DenoiserSpec(MASK, VOCABULARY, 2 * PADDED, **settings)


def objective_of(name):
    if name == "autoregressive":
        sizes = shape(initializer_range=0.3)
        return Autoregressive(stock(VOCABULARY, PADDED, MASK, sizes=sizes, shift=True, attention="causal"))
    teacher = stock(VOCABULARY, PADDED, MASK, sizes=shape(initializer_range=0.3)).requires_grad_(False)
    student = trainable_copy(teacher)
    if name == "elbo":
        objective = MaskedElbo(student, MaskedProcess(), EditConfig(rate=0.4, share=1.0))
    else:
        config, sampler = KINDS[name]
        torch.manual_seed(1)
        objective = config.build(Distillation(teacher, student, MaskedProcess(), LENGTH, teacher, sampler))
    with torch.no_grad():
        for phase in objective.phases:
            for parameter in objective.networks[phase].parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    objective.begin(0, 4)
    return objective


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
    rand = torch.rand

    def drawn(size, **options):
        axis = next((a for a, n in enumerate(size) if n in (PADDED, PADDED + 1)), None)
        if axis is None:
            return rand(size, **options)
        own = size[axis] - PADDED  # a number of the row's own stands before those of its positions
        values = rand((*size[:axis], LENGTH + own, *size[axis + 1 :]), **options)
        out = torch.full(tuple(size), 0.5, dtype=values.dtype)
        out.narrow(axis, 0, own).copy_(values.narrow(axis, 0, own))
        out.narrow(axis, own + LEFT, LENGTH).copy_(values.narrow(axis, own, LENGTH))
        return out

    monkeypatch.setattr(randomness, "torch", SimpleNamespace(**{**vars(torch), "rand": drawn}))


def results(objective, phase, rollout):
    """Loss, count, metrics and gradients."""
    objective.networks[phase].zero_grad()
    out = objective.loss(phase, rollout)
    out.sum.backward()
    gradients = [p.grad.clone() for p in objective.networks[phase].parameters() if p.grad is not None]
    metrics = [value.double() for pair in out.metrics.values() for value in pair]
    return [out.sum.detach(), objective.count(phase, rollout), *metrics, *gradients]


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
    objective, batch = objective_of(name), padded(infilling())
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
