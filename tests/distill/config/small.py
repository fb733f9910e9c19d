"""Two configs as small as they can be, and what all refusals have in common."""

import pytest
import yaml

from distill.config import DistillConfig, PretrainConfig, load_config
from teachers.errors import UserError

DISTIL = {
    "teacher": {"path": "models/some/teacher"},
    "objective": {"name": "integral_kl", "rollout": {"name": "k_step", "steps": [4, 8]}},
    "length": 16,
    "train": {"updates": 2, "batch": 8, "student": {"lr": 1e-4}, "critic": {"lr": 1e-4}},
}
PRETRAIN = {
    "model": {"type": "qwen3"},
    "data": {"path": "some.txt", "length": 16},
    "train": {"updates": 2, "batch": 8, "student": {"lr": 1e-4}},
}


def load_text(tmp_path, text, *overrides, kind=DistillConfig):
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    return load_config(kind, path, overrides)


def load(kind, base, tmp_path, *overrides):
    return load_text(tmp_path, yaml.safe_dump(base), *overrides, kind=kind)


def distil(tmp_path, *overrides):
    return load(DistillConfig, DISTIL, tmp_path, *overrides)


def pretrain(tmp_path, *overrides):
    return load(PretrainConfig, PRETRAIN, tmp_path, *overrides)


def refused(call, *parts):
    """The message of the one error, which must be one line that holds every part."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message
