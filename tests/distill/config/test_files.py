"""The configs that come with the project."""

from pathlib import Path

import pytest
import yaml

from distill.config import DistillConfig, PretrainConfig, dump_config, load_config, validate

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def test_there_are_configs():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(CONFIGS)) for p in FILES])
def test_every_config_loads(path):
    kind = PretrainConfig if path.parent.name == "pretrain" else DistillConfig
    config = load_config(kind, path)
    # what a run writes down is read back as the same config
    assert validate(kind, yaml.safe_load(dump_config(config))) == config
