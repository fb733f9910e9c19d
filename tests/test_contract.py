"""What every pair of an objective and a family keeps, on rows that are open, prompted or padded; and every wrapper."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch

from objectives import DISTILLERS
from objectives.objective import Distillation, Objective, ObjectiveConfig
from students.adapters import AdaptedDenoiser, AdapterConfig
from students.planner import PlannedDenoiser, add_planner
from students.samplers import Ancestral, Planner
from students.student import frozen, trainable_copy
from teachers.canvas import Batch, Canvas
from teachers.denoiser import DelegatingDenoiser, Denoiser
from teachers.markov import MarkovDenoiser, random_source
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
    start = FAMILIES["stock"]() if isinstance(teacher, MarkovDenoiser) else teacher
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
