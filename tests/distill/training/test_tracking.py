"""Whether Weights & Biases can be used is asked before anything is loaded or made."""

import pytest

from distill.training.tracking import check_wandb
from teachers.errors import UserError
from tests.forks import fewstep

RUN = ["distill", "configs/smoke.yaml", "train.updates=1", "evaluate.every=null", "--run-dir"]


@pytest.fixture
def nobody(tmp_path):
    """The environment of a person who has never logged in."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        "HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home), "WANDB_API_KEY": "",
        "WANDB_MODE": "online",
    }  # fmt: skip


def test_without_a_login_the_command_ends_before_anything_is_made(nobody, tmp_path):
    _, said = fewstep(*RUN, tmp_path / "run", "train.wandb=ferries", code=2, **nobody)
    [line] = [line for line in said.splitlines() if line.startswith("error:")]
    assert "train.wandb is 'ferries', but Weights & Biases cannot be used" in line
    assert "run wandb login, set WANDB_MODE=offline" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "part"),
    [({"WANDB_MODE": "on-line"}, "mode is 'on-line'"), ({"WANDB_API_KEY": "short"}, "API key must have 40+")],
)
def test_settings_that_wandb_refuses_are_one_line(nobody, environment, part, tmp_path):
    _, said = fewstep(*RUN, tmp_path / "run", "train.wandb=ferries", code=2, **nobody | environment)
    assert part in said
    assert not (tmp_path / "run").exists()


def test_a_projects_name_is_checked_offline_too(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_wandb("ferries")
    check_wandb(None)
    with pytest.raises(UserError, match=r"train.wandb is 'a/b'.*Invalid project name"):
        check_wandb("a/b")


@pytest.mark.parametrize(("mode", "kept"), [("offline", 1), ("disabled", 0)])
def test_offline_and_disabled_need_no_login(nobody, mode, kept, tmp_path):
    fewstep(*RUN, tmp_path / "run", "train.wandb=ferries", **nobody | {"WANDB_MODE": mode, "WANDB_SILENT": "true"})
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))) == kept
