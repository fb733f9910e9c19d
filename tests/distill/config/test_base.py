"""Configs that are based on others."""

from pathlib import Path

import pytest
import yaml

from distill.config import DistillConfig, dump_config, load_config, validate
from distill.config.overrides import merge
from tests.distill.config.small import DISTIL, refused

SEVERAL = [DistillConfig]


@pytest.fixture
def write(tmp_path):
    """Write a config into a file of the folder, and return its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), "utf-8")
        return path

    write_file("small.yaml", DISTIL)
    return write_file


def read(path, *overrides):
    return load_config(DistillConfig, path, overrides)


def test_a_file_says_only_what_is_its_own(write):
    path = write("sub/own.yaml", "base: ../small.yaml\nlength: 32\ntrain: {batch: 4, student: {clip: 2}}")
    config = read(path)
    assert (config.length, config.train.batch, config.train.updates) == (32, 4, 2)
    assert (config.train.student.lr, config.train.student.clip) == (1e-4, 2), "sections are merged key by key"
    assert config.objective.rollout.steps == [4, 8]


def test_overrides_stand_above_the_file_and_the_file_above_its_base(write):
    path = write("own.yaml", "base: small.yaml\ntrain: {batch: 4}")
    assert read(path, "train.batch=16").train.batch == 16
    assert read(path, "train.updates=3").train.batch == 4


def test_what_a_run_writes_down_is_complete(write):
    config = read(write("own.yaml", "base: small.yaml\nlength: 32"))
    written = yaml.safe_load(dump_config(config))
    assert "base" not in written
    assert validate(DistillConfig, written) == config == read(write("whole.yaml", {**DISTIL, "length": 32}))


def test_bases_have_bases_and_a_later_one_overrides_an_earlier(write):
    write("a.yaml", "base: small.yaml\nlength: 32\ntrain: {batch: 4, ema: 0.5}")
    write("b.yaml", "train: {batch: 16}\nevaluate: {samples: 8}")
    config = read(write("own.yaml", "base: [a.yaml, b.yaml]\nevaluate: {every: 1}"))
    assert (config.length, config.train.batch, config.train.ema) == (32, 16, 0.5)
    assert (config.evaluate.samples, config.evaluate.every) == (8, 1)
    config = read(write("own.yaml", "base: [b.yaml, a.yaml]"))
    assert config.train.batch == 4


def test_two_bases_may_share_theirs(write):
    write("a.yaml", "base: small.yaml\nlength: 32")
    write("b.yaml", "base: small.yaml")
    assert read(write("own.yaml", "base: [a.yaml, b.yaml]")).length == 16


def test_many_that_share_theirs_are_read_once(write):
    for number in range(20):  # 2²⁰ readings, were each read every time
        below = f"level-{number - 1}.yaml" if number else "small.yaml"
        write(f"level-{number}.yaml", f"base: [{below}, {below}]")
    assert read(write("own.yaml", "base: level-18.yaml")).length == 16


def test_a_base_may_be_in_the_home_folder(write, monkeypatch):
    path = write("sub/own.yaml", "base: ~/small.yaml")
    monkeypatch.setenv("HOME", str(path.parents[1]))
    assert read(path).length == 16


def test_lists_are_replaced(write):
    config = read(write("own.yaml", "base: small.yaml\nobjective: {rollout: {steps: [2]}}"))
    assert config.objective.rollout.steps == [2]


def test_a_section_of_another_name_replaces_the_whole(write):
    other = "base: small.yaml\ntrain: {critic: null}\nteacher_samples: 8\n"
    assert read(write("own.yaml", other + "objective: {name: sdtt}")).objective.name == "sdtt"
    assert read(write("own.yaml", other + "objective: sdtt")).objective.name == "sdtt"
    refused(lambda: read(write("own.yaml", other + "objective: {name: sdtt, omega: 1}")), "objective.omega")
    bonus = "objective: {name: integral_kl, regularisers: {entropy_bonus: 0.5}}"
    same = read(write("own.yaml", "base: small.yaml\n" + bonus)).objective
    assert (same.rollout.steps, same.regularisers.entropy_bonus) == ([4, 8], 0.5)


def test_a_name_alone_is_a_section(write):
    write("threshold.yaml", "base: small.yaml\nevaluate: {sampler: {name: threshold, threshold: 0.5}}")
    changed = read(write("own.yaml", "base: threshold.yaml\nevaluate: {sampler: {confidence: drawn}}"))
    assert (changed.evaluate.sampler.threshold, changed.evaluate.sampler.confidence) == (0.5, "drawn")
    assert read(write("own.yaml", "base: threshold.yaml\nevaluate: {sampler: top_k}")).evaluate.sampler.name == "top_k"
    path = write("own.yaml", "base: small.yaml\nevaluate: {sampler: threshold}")
    assert read(path, "evaluate.sampler.threshold=0.25").evaluate.sampler.threshold == 0.25


def test_null_removes_what_a_base_says(write):
    write("a.yaml", "base: small.yaml\nevaluate: {every: 1, samples: 8}\nstudent: {adapter: {rank: 4}}")
    config = read(write("own.yaml", "base: a.yaml\nevaluate: null\nstudent: {adapter: null}"))
    assert config.evaluate == read(write("none.yaml", "base: small.yaml")).evaluate
    assert config.student.adapter is None
    refused(lambda: read(write("own.yaml", "base: small.yaml\nteacher: null")), "teacher is missing")


def test_merging_leaves_both_as_they_are():
    lower, upper = {"train": {"batch": 1, "ema": 0.5}}, {"train": {"batch": 2}, "length": 3}
    assert merge(lower, upper, SEVERAL) == {"train": {"batch": 2, "ema": 0.5}, "length": 3}
    assert (lower, upper) == ({"train": {"batch": 1, "ema": 0.5}}, {"train": {"batch": 2}, "length": 3})


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_a_base_that_is_not_there(write):
    path = write("own.yaml", "base: none.yaml")
    refused(lambda: read(path), "none.yaml", str(path), "does not exist", "from the folder of the file")


def test_a_base_that_is_no_mapping(write):
    write("list.yaml", "[1]")
    write("broken.yaml", "a: [")
    path = write("own.yaml", "base: list.yaml")
    refused(lambda: read(path), "list.yaml", str(path), "holds list")
    path = write("own.yaml", "base: broken.yaml")
    refused(lambda: read(path), "cannot read base", "broken.yaml", str(path))
    path = write("own.yaml", "base: .")
    refused(lambda: read(path), "cannot read base", str(path))


def test_a_base_that_comes_back(write):
    path = write("own.yaml", "base: own.yaml")
    refused(lambda: read(path), str(path), "based on it")
    path = write("a.yaml", "base: b.yaml")
    other = write("b.yaml", "base: c.yaml")
    write("c.yaml", "base: ./a.yaml")
    refused(lambda: read(path), "a.yaml", "c.yaml", "take the base out")
    Path(other).unlink()
    other.symlink_to(path)
    refused(lambda: read(path), "a.yaml", "b.yaml")


@pytest.mark.parametrize("name", ["loop.yaml", '"a\\0b"', "x" * 300])
def test_a_base_that_no_file_can_be(name, write, tmp_path):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").symlink_to(tmp_path / "loop.yaml")
    refused(lambda: read(write("own.yaml", f"base: {name}")), "cannot read base", "own.yaml")
    refused(lambda: read(tmp_path / "loop.yaml"), "cannot read config", "loop.yaml")


def test_too_many_files_below_each_other(write):
    for number in range(30):
        write(f"level-{number}.yaml", f"base: level-{number + 1}.yaml")
    refused(lambda: read(write("own.yaml", "base: level-0.yaml")), "own.yaml", "more than 20")


@pytest.mark.parametrize("value", ["3", "[small.yaml, 3]", "''", "{path: small.yaml}", "true"])
def test_a_base_that_names_no_file(value, write):
    path = write("own.yaml", f"base: {value}")
    refused(lambda: read(path), f"base of config {str(path)!r} is", "give the path of a config")


def test_a_base_that_stands_for_millions(write):
    levels = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcde", "bcdef", strict=True))
    write("bomb.yaml", "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + levels)
    refused(lambda: read(write("own.yaml", "base: bomb.yaml\ntrain: {batch: 4}")), "bomb.yaml", "alias")
    write("loop.yaml", "train: &t {critic: *t}")
    refused(lambda: read(write("own.yaml", "base: [small.yaml, loop.yaml]")), "loop.yaml", "alias")


def test_a_base_is_not_an_override(write):
    refused(lambda: read(write("own.yaml", DISTIL), "base=small.yaml"), "unknown key base")
