"""The parts of an integral KL's config: names alone, a published method's settings, and the old spelling."""

import pytest

from objectives.corruption import Nested, Times
from objectives.didi_instruct import DidiInstructConfig
from objectives.dimo import DimoConfig
from objectives.gradients import Marginalised, ScoreFunction, ThroughLogits
from objectives.integral_kl import MOVED, IntegralKLConfig
from objectives.ratios import Auxiliary, Discrimination
from objectives.regularisers import Regularisers
from objectives.rollouts import KStep, OneMove


def test_a_part_may_be_its_name_alone():
    config = IntegralKLConfig(rollout="one_move", gradient="logit", corruption="nested")
    assert (config.rollout, config.gradient, config.corruption) == (OneMove(), ThroughLogits(), Nested())
    assert config == IntegralKLConfig(rollout=OneMove(), gradient={"name": "logit"}, corruption={"name": "nested"})


def test_settings_that_are_left_out_are_the_published_methods():
    config = DidiInstructConfig(ratio={"blocks": 2}, time={"pi": (1, 1)}, regularisers={"teacher_weight": 0})
    assert config.ratio == Discrimination(blocks=2, reward_clamp=8.0)
    assert config.time == Times(pi=(1, 1), clamp=(0.02, 0.98))
    assert config.regularisers == Regularisers(entropy_bonus=5e-4)
    assert config.gradient == ScoreFunction(group_size=4)
    assert DimoConfig(rollout="one_move").rollout.random_share == 0.4


def test_settings_of_another_part_are_its_own():
    config = DidiInstructConfig(ratio="auxiliary", gradient={"name": "marginalised"})
    assert (config.ratio, config.gradient) == (Auxiliary(reward_clamp=5.0), Marginalised())


def test_a_config_that_is_written_out_is_read_back():
    for config in (IntegralKLConfig(rollout=KStep(steps=[3])), DidiInstructConfig(gradient="per_token"), DimoConfig()):
        assert type(config)(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_the_old_spelling_is_refused_with_the_new_one(old, new):
    with pytest.raises(ValueError, match=rf"{old} is now {new}; write objective\.{new}"):
        IntegralKLConfig(**{old: 1})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": "discriminator"}, "gradient 'marginalised' needs a reward for every vocabulary entry"),
        ({"rollout": "one_move", "corruption": "coupled"}, "needs an intermediate state"),
        ({"gradient": {"exact_share": 0.5}}, "exact only for nested corruption"),
        ({"gradient": {"name": "per_token", "group_size": 1}}, "greater than or equal to 2"),
        ({"gradient": {"group_size": 4}}, "Extra inputs are not permitted"),
        ({"rollout": {"random_share": 0.4}}, "Extra inputs are not permitted"),
        ({"time": {"clamp": (0.5, 0.2)}}, "give 0 < low < high"),
        ({"rollout": 3}, "valid dictionary"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        IntegralKLConfig(**settings)
