"""Configs by name."""

from pathlib import Path

import pytest

from distill.config import DistillConfig, load_config
from distill.config.bundled import config_file
from teachers.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"


def test_a_name_is_a_file_that_comes_with_the_project():
    assert config_file("bundled:compare/sdtt") == CONFIGS / "compare" / "sdtt.yaml"
    assert config_file("some/where.yaml") == Path("some/where.yaml")
    by_name = load_config(DistillConfig, "bundled:quickstart", ["train.updates=3"])
    assert by_name == load_config(DistillConfig, CONFIGS / "quickstart.yaml", ["train.updates=3"])


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(
        UserError, match=r"no config 'bundled:quickstrt' comes with.*did you mean 'quickstart'\?.*bundled:smoke"
    ):
        config_file("bundled:quickstrt")
