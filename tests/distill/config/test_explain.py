"""How a mistake is told: a key of an older fewstep with what to write now."""

import pytest
from pydantic import ValidationError

from distill.config import DistillConfig
from distill.config.explain import MOVED, explain, locate
from tests.distill.config.small import DISTIL, distil, refused

OLD = {
    "evaluate.drawing": "sampler.draw",
    "objective.didi_instruct.omega_old": "objective.gradient.omega",
    "objective.steps": "objective.rollout.steps",
}


def line(values):
    with pytest.raises(ValidationError) as caught:
        DistillConfig.model_validate(values)
    return explain(DistillConfig, caught.value.errors(), OLD)


def test_a_key_that_moved_is_told_before_other_mistakes():
    said = line({**DISTIL, "length": 1, "evaluate": {"drawing": "exact"}})
    assert said == "evaluate.drawing is 'exact', which is no longer set here; write sampler.draw instead"


def test_a_key_may_have_moved_in_one_of_several_kinds():
    moved = {**DISTIL, "objective": {"name": "didi_instruct", "omega_old": 1}}
    assert (
        line(moved) == "objective.omega_old is 1, which is no longer set here; write objective.gradient.omega instead"
    )
    assert "unknown key objective.omega_old" in line({**DISTIL, "objective": {"name": "sdtt", "omega_old": 1}})


def test_a_key_may_hold_what_it_no_longer_may():
    assert "write objective.rollout.steps" in line({**DISTIL, "objective": {"name": "integral_kl", "steps": "many"}})


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (("objective", "step_reduction", "threshold"), "objective.threshold"),
        (("evaluate", "sampler", "threshold", "threshold"), "evaluate.sampler.threshold"),
        (("objective", "integral_kl", "steps", 0), "objective.steps.0"),
        (("student", "adapter", "rank"), "student.adapter.rank"),
    ],
)
def test_names_that_pydantic_puts_into_a_path_are_left_out(place, path):
    assert ".".join(locate(DistillConfig, place)[0]) == path


@pytest.mark.parametrize("key", MOVED)
def test_every_old_key_is_refused_with_the_new_spelling(key, tmp_path):
    said = f"{key} is 'old', which is no longer set here; write {MOVED[key]} instead"
    assert refused(lambda: distil(tmp_path, f"{key}=old")) == said
