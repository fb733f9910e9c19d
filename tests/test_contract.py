"""What every pair of an objective and a family keeps, on rows that are open, prompted or padded; and every wrapper."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from distill.evaluation.first_pass import FirstPass
from distill.evaluation.progress import Watched
from objectives import DISTILLERS
from objectives.objective import Distillation, Objective, ObjectiveConfig, Rollout
from students.adapters import AdaptedDenoiser, AdapterConfig
from students.planner import PlannedDenoiser, add_planner
from students.samplers import Ancestral, Planner
from students.student import frozen, trainable_copy
from teachers.canvas import Batch, Canvas
from teachers.delegating import DelegatingDenoiser
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.markov import random_source
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import prompted
from tests.networks import mdlm, shape, stock

VOCABULARY, LENGTH, MASK, ROWS = 7, 8, 6, 8
SIZES = shape(initializer_range=0.2)
FAMILIES: dict[str, Callable[[], Denoiser]] = {
    "stock": lambda: stock(VOCABULARY, LENGTH, MASK, sizes=SIZES),
    "shifted": lambda: stock(VOCABULARY, LENGTH, MASK, sizes=SIZES, shift=True),
    "block": lambda: stock(VOCABULARY, LENGTH, MASK, sizes=SIZES, attention="block", block_size=4),
    "gaps": lambda: stock(VOCABULARY + 3, LENGTH, MASK, sizes=SIZES, gaps=((7, 8), (9, 10))),
    "mdlm": lambda: mdlm(VOCABULARY, LENGTH),
    "mdlm with time": lambda: mdlm(VOCABULARY, LENGTH, time_conditioned=True),
    "markov": lambda: random_source(VOCABULARY - 1, 1, 1.0, 0, LENGTH),
}
SETTINGS = {  # what a row of eight tokens and eight rows ask for
    "integral_kl": {"rollout": {"steps": [2, 4]}},
    "step_reduction": {"steps": 4, "group_size": 2},
    "representation_mmd": {"sets": 2, "draws": 2},
}
CANVASES = ["open", "prompted", "left padded", "right padded"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config_of(kind: type[ObjectiveConfig]) -> ObjectiveConfig:
    name = kind.model_fields["name"].default
    return kind(**SETTINGS.get(name, {}))


@torch.no_grad()
def objective_of(kind: type[ObjectiveConfig], family: str) -> tuple[Objective, Denoiser]:
    """The objective and its teacher, every network that trains a little off its start."""
    teacher = frozen(FAMILIES[family]())
    start = FAMILIES["stock"]() if isinstance(teacher, SourceDenoiser) else teacher
    torch.manual_seed(1)
    student = trainable_copy(start)
    config = config_of(kind)
    sampler = Planner() if config.name == "step_reduction" else Ancestral()
    objective = config.build(Distillation(teacher, student, MaskedProcess(), LENGTH, frozen(start), sampler))
    for phase in objective.phases:
        for parameter in objective.networks[phase].parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return objective, teacher


def batch_of(kind: str) -> Batch:
    """Rows with labels and an order, whatever an objective reads of them."""
    labels = torch.randint(0, MASK, (ROWS, LENGTH), generator=seeded(2))
    order = torch.rand(ROWS, LENGTH, generator=seeded(3)).argsort(1)
    batch = Batch(Canvas.blank(ROWS, LENGTH, MASK), labels, order)
    if kind == "open":
        return batch
    open_ = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    open_[:, :2] = open_[:, -1] = False
    return prompted(batch, open_, left=2 * (kind == "left padded"), right=3 * (kind == "right padded"))


def pairs():
    return pytest.mark.parametrize(
        ("kind", "family"),
        [pytest.param(k, f, id=f"{k.model_fields['name'].default}-{f}") for k in DISTILLERS for f in FAMILIES],
    )


@pairs()
@pytest.mark.parametrize("canvas", CANVASES)
def test_losses_are_finite_split_anywhere_and_reach_their_own_network_alone(kind, family, canvas):
    objective, teacher = objective_of(kind, family)
    batch = batch_of(canvas)
    objective.begin(0, 4)
    rollout = objective.rollout(batch, RowStreams(0, (0,), range(ROWS)))
    networks = {"teacher": teacher, **objective.networks}
    for phase in objective.phases:
        count, gradients = objective.count(phase, rollout), []
        assert count > 0
        for size in (ROWS, objective.group):
            for network in networks.values():
                network.zero_grad()
            for start in range(0, ROWS, size):
                loss = objective.loss(phase, rollout.rows(slice(start, start + size))).sum
                assert loss.isfinite()
                (loss / count).backward()
            gradients.append({n: p.grad.clone() for n, p in networks[phase].named_parameters() if p.grad is not None})
        assert any(gradient.abs().sum() > 0 for gradient in gradients[0].values())
        for one, many in zip(gradients[0].values(), gradients[1].values(), strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-6)  # float32 sums in another order
        own = {id(parameter) for parameter in networks[phase].parameters()}
        for name, network in networks.items():
            reached = [p for p in network.parameters() if p.grad is not None and id(p) not in own]
            assert not reached, f"{phase}'s loss reached {name}"


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("kind", DISTILLERS, ids=lambda kind: kind.model_fields["name"].default)
@torch.no_grad()
def test_rows_stand_alone_and_what_padding_holds_is_not_read(kind, canvas):
    objective, _ = objective_of(kind, "stock")
    objective.begin(0, 4)
    batch, half = batch_of(canvas), slice(ROWS // 2, ROWS)
    whole = objective.rollout(batch, RowStreams(0, (1,), range(ROWS)))
    alone = objective.rollout(batch.rows(half), RowStreams(0, (1,), range(ROWS)[half]))
    assert_equal_rollouts(whole.rows(half), alone)
    if batch.canvas.real is None:
        return
    other = replace(batch.canvas, tokens=batch.canvas.tokens.masked_fill(~batch.canvas.real, 3))
    labels = batch.labels.masked_fill(~batch.canvas.real, 4)
    filled = objective.rollout(replace(batch, canvas=other, labels=labels), RowStreams(0, (1,), range(ROWS)))
    for phase in objective.phases:
        losses = [objective.loss(phase, rollout).sum for rollout in (whole, filled)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        assert objective.count(phase, whole) == objective.count(phase, filled)


def assert_equal_rollouts(one: Rollout, other: Rollout) -> None:
    """Part by part; where networks computed them, up to the order of float sums."""
    assert one.parts().keys() == other.parts().keys()
    for name, part in one.parts().items():
        tensors = [vars(x) if isinstance(x, Canvas) else {name: x} for x in (part, other.parts()[name])]
        for key, tensor in tensors[0].items():
            torch.testing.assert_close(tensor, tensors[1][key], rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


# --- wrappers --------------------------------------------------------------------------------------------------------

DERIVED = {"features_at", "log_probs", "require", "forward"}
"""Methods of a denoiser that are made of its others."""
METHODS = [name for name, value in vars(Denoiser).items() if callable(value) or isinstance(value, property)]
METHODS = sorted(name for name in METHODS if not name.startswith("_") and name not in DERIVED)
OWN = {
    DelegatingDenoiser: set(),
    PlannedDenoiser: {"commit_logits", "repulsion", "save", "laid_out"},
    FirstPass: {"features_at"},
    Watched: {"features", "window_features"},
}
"""What wrappers do themselves."""


class Answers(Denoiser):
    """Remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __getattribute__(self, name):
        if name not in METHODS:
            return super().__getattribute__(name)
        self.asked.append(name)
        return name if isinstance(vars(Denoiser)[name], property) else lambda *arguments: name

    def features(self, canvas, select=None):
        raise AssertionError("never reached")

    def save(self, folder, compression=None, released=False):
        raise AssertionError("never reached")


def answer(denoiser: Denoiser, name: str):
    """What a method of a denoiser says to any arguments."""
    value = vars(Denoiser)[name]
    if isinstance(value, property):
        return getattr(denoiser, name)
    parameters = list(inspect.signature(value).parameters)[1:]
    return getattr(denoiser, name)(*[None] * len(parameters))


def wrappers(kind: type = DelegatingDenoiser) -> list[type[DelegatingDenoiser]]:
    """Ours that anything has imported."""
    below = [wrapper for sub in kind.__subclasses__() for wrapper in wrappers(sub)]
    return [kind, *below] if kind.__module__.split(".")[0] not in ("tests", "benchmarks") else below


@pytest.mark.parametrize("kind", wrappers(), ids=lambda kind: kind.__name__)
def test_a_wrapper_forwards_every_method_that_is_not_its_own(kind):
    inner = Answers()
    inner.spec = stock(VOCABULARY, LENGTH).spec
    wrapper = object.__new__(kind)
    DelegatingDenoiser.__init__(wrapper, inner)
    assert OWN[kind] <= set(vars(kind))
    for name in set(METHODS) - OWN[kind]:
        said = answer(wrapper, name)
        assert inner.asked.pop() == name
        assert not inner.asked
        assert said == name or said is None, "the answer is another one"


def test_an_adapted_denoiser_asks_its_base_or_says_that_it_can_not():
    base = add_planner(stock(VOCABULARY, LENGTH), 4)
    adapted = AdaptedDenoiser(base, AdapterConfig(rank=2))
    refused = {"blocks", "network", "output_layer"}
    assert set(METHODS) - set(vars(AdaptedDenoiser)) == refused, "a method that it would answer as no wrapper at all"
    for name in refused:
        with pytest.raises(UserError, match="AdaptedDenoiser has none"):
            answer(adapted, name)
    blank = Canvas.blank(1, 4, 1)
    for denoiser in (base, adapted):
        assert torch.equal(denoiser.log_probs(blank), base.log_probs(blank))
        assert torch.equal(denoiser.time(blank), base.time(blank))
        assert denoiser.repulsion is base.planner.repulsion
    with pytest.raises(UserError, match="compression 'int8' needs a network with compression"):
        adapted.save("nowhere", "int8")
