"""The six rows of DiDi-Instruct's ablation: what they differ in, and that each is what its name says."""

from pathlib import Path

import pytest
import torch

from distill.config import DistillConfig, load_config
from objectives.corruption import Coupled, ElboWeight, Independent, Times, UniformWeight
from objectives.didi_instruct import DidiInstructConfig
from objectives.regularisers import Regularisers
from objectives.rollouts import OneMove, TwoMoves
from teachers.randomness import RowStreams
from tests.batches import batch_of
from tests.objectives.test_integral_kl import MASK, real_rows, small_objective
from tests.objectives.wiring import check_batch_split, check_phases_are_separate

FOLDER = Path(__file__).parents[2] / "configs" / "ablation" / "didi_instruct"
FILES = sorted(FOLDER.glob("*.yaml"))
SWITCHES = [
    ("1_score_decomposition", {"rollout": (OneMove(), TwoMoves())}),
    ("2_coupled_time", {"corruption": (Independent(), Coupled())}),
    ("3_omega", {"weight": (UniformWeight(importance=True), ElboWeight(importance=True))}),
    ("4_pi", {"time": (Times(pi=(1, 1)), Times(pi=(2, 2)))}),
    ("5_regularisers", {"regularisers": (Regularisers(), Regularisers(teacher_weight=0.02, entropy_bonus=5e-4))}),
]


def rows():
    return [load_config(DistillConfig, path) for path in FILES]


def test_rows_differ_in_their_switch_alone():
    assert [path.stem for path in FILES] == ["0_base"] + [name for name, _ in SWITCHES]
    configs = rows()
    for before, after, (_, expected) in zip(configs[:-1], configs[1:], SWITCHES, strict=True):
        assert before.model_dump(exclude={"objective"}) == after.model_dump(exclude={"objective"})
        one, two = dict(before.objective), dict(after.objective)
        assert {name: (one[name], two[name]) for name in one if one[name] != two[name]} == expected


def test_the_last_row_is_the_whole_method():
    assert rows()[-1].objective == DidiInstructConfig()


@pytest.mark.parametrize("row", range(6))
def test_every_row_takes_an_update(row):
    """Both networks move, with the same gradient however the batch is split."""
    config = rows()[row].objective
    check_batch_split(small_objective(config), real_rows(8))
    check_phases_are_separate(small_objective(config), real_rows(8))
    objective = small_objective(config)
    rollout = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (0,), range(8)))
    for phase in objective.phases:
        optimizer = torch.optim.AdamW(objective.networks[phase].parameters(), lr=1e-3)
        before = [p.clone() for p in objective.networks[phase].parameters()]
        (objective.loss(phase, rollout).sum / objective.count(phase, rollout)).backward()
        optimizer.step()
        after = list(objective.networks[phase].parameters())
        assert all(p.isfinite().all() for p in after)
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_time_is_coupled_from_the_row_that_says_so():
    """Rows 1 and 2 share the moves; the sample's masks follow τ in row 2 only."""
    correlations = []
    for config in rows()[1:3]:
        rollout = small_objective(config.objective).rollout(
            batch_of(small_objective(config.objective), real_rows(1200), 1200), RowStreams(0, (0,), range(1200))
        )
        shares = torch.stack([(x == MASK).float().mean(1) for x in (rollout.states[:, 1], rollout.fake.tokens)])
        correlations.append(float(torch.corrcoef(shares)[0, 1]))
        groups = rollout.weight.view(-1, 4)
        assert (groups == groups[:, :1]).all()  # a group shares its times, also where there are two of them
    assert abs(correlations[0]) < 0.1
    assert correlations[1] > 0.5


def test_weights_are_one_until_omega_and_pi_come():
    weights = [
        small_objective(config.objective)
        .rollout(batch_of(small_objective(config.objective), real_rows(64), 64), RowStreams(0, (0,), range(64)))
        .weight
        for config in rows()
    ]
    for row in range(3):
        assert (weights[row] == 1).all()  # π = Beta(1, 1): importance divides by 1
    assert (weights[3] >= 1).all()  # 1/τ
    assert weights[3].max() <= 10
    assert weights[4].min() >= 1.1249  # 1/τ over 6τ(1−τ): its minimum is 27/24, at τ = 2/3
    assert weights[4].min() < 1.2
    torch.testing.assert_close(weights[4], weights[5])
