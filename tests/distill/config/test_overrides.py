"""Files, the files they are based on, and overrides."""

import pytest
import yaml

from distill.config import DistillConfig, apply_override, is_override, load_config
from tests.distill.config.small import DISTIL, distil, refused

# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "NoneType"),
        (b"- a\n- b\n", "list"),
        (b"a: [1\nb: }", "cannot read"),
        (b"\tteacher: x", "cannot read"),
        (b"a: b: c", "cannot read"),
        (b"a: \xff", "cannot read"),
    ],
)
def test_files_that_are_no_config(content, part, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    refused(lambda: load_config(DistillConfig, tmp_path / "c.yaml"), part, "c.yaml")


def test_no_file(tmp_path):
    refused(lambda: load_config(DistillConfig, tmp_path / "none.yaml"), "none.yaml", "does not exist")
    refused(lambda: load_config(DistillConfig, tmp_path), "cannot read")


# --- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_of_lists_nulls_and_sections(tmp_path):
    config = distil(
        tmp_path,
        "objective.rollout.steps=[2, 16]",
        "train.student.betas=[0.5, 0.6]",
        "train.wandb=null",
        "train.critic={lr: 3.0e-4, clip: 0}",
        "teacher.path=a=b",
    )
    assert config.objective.rollout.steps == [2, 16]
    assert config.train.student.betas == (0.5, 0.6)
    assert config.train.wandb is None
    assert (config.train.critic.lr, config.train.critic.clip) == (3e-4, 0)
    assert config.teacher.path == "a=b", "only the first = separates"


def test_overrides_make_the_sections_they_need():
    values = {"empty": None}
    for override in ("a.b.c=1", "a.b.d=two", "empty.x=true"):
        apply_override(DistillConfig, values, override)
    assert values == {"a": {"b": {"c": 1, "d": "two"}}, "empty": {"x": True}}


def test_an_override_changes_one_of_two_aliased_sections(tmp_path):
    path = tmp_path / "c.yaml"
    aliased = {"updates": 2, "batch": 8, "student": {"lr": 1e-4}}
    path.write_text(yaml.safe_dump({**DISTIL, "train": {**aliased, "critic": aliased["student"]}}), "utf-8")
    assert "*id" in path.read_text("utf-8")
    train = load_config(DistillConfig, path, ["train.student.lr=1e-3"]).train
    assert (train.student.lr, train.critic.lr) == (1e-3, 1e-4)


def test_later_overrides_win(tmp_path):
    assert distil(tmp_path, "train.updates=5", "train.updates=7").train.updates == 7


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.updates", "key.sub=value"),
        ("=3", "key.sub=value"),
        ("--x=3", "key.sub=value"),
        ("length=[1", "YAML"),
        ("evaluate.task.marker=####", "quote it: \"evaluate.task.marker='####'\""),
    ],
)
def test_malformed_overrides(override, part, tmp_path):
    refused(lambda: distil(tmp_path, override), repr(override), part)


def test_an_override_below_a_value(tmp_path):
    refused(lambda: distil(tmp_path, "length.x=3"), "length is 16, not a section")


def test_a_word_is_an_override_unless_it_is_a_file_or_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_override("lr=2e-4")
    assert is_override("train.student.lr=2e-4")
    (tmp_path / "lr=2e-4").mkdir()
    assert not is_override("lr=2e-4")
    assert not is_override("lr=2e-4/")
    assert not is_override("runs/lr=2e-4"), "no key has a slash"
    assert not is_override("configs/a.yaml")
