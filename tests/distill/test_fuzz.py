"""Generated bad input: whatever is in a config, a corpus or a model folder, the answer is right or one line."""

import copy
import json
import math
import shutil
import struct
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import cli
from distill.config import DataConfig, DistillConfig, PretrainConfig, TokenizerConfig, dump_config, load_config
from distill.data import train_tokenizer
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.causal import create_denoiser, load_denoiser

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {
    name: (kind, yaml.safe_load((CONFIGS / name).read_text("utf-8")))
    for name, kind in (
        ("smoke.yaml", DistillConfig),
        ("quickstart.yaml", DistillConfig),
        ("pretrain/novels-teacher.yaml", PretrainConfig),
        ("pretrain/novels-judge.yaml", PretrainConfig),
    )
}
DEEPSPEED = ["zero_optimization", "comms_logger", "aio", "checkpoint", "wall_clock_breakdown", "stage", "bf16", "seed"]

# --- configs -------------------------------------------------------------------------------------------------------

numbers = st.sampled_from(
    [0, -1, 1, 2, 7, 2**31, 2**70, -(10**30), 0.0, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf]
)
texts = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    st.sampled_from(["", "bundled:", "bundled:teacher", "../x", "/", "org/name", "org/name@main", "a\nb", "\x1b[31m"]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=4), st.dates())
keys = st.one_of(texts, st.integers(-2, 2), st.none(), st.booleans(), st.sampled_from(DEEPSPEED))
junk = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)


def places(values, path=()):
    """The path of every value of a config."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def bad_configs(draw):
    """A config that comes with the project, with one to three things done to it; and overrides."""
    kind, values = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(values))
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        section = values
        for key in above:
            section = section[key]
        what = draw(st.sampled_from(["drop", "rename", "replace", "replace", "listed", "added", "alias", "deepspeed"]))
        if what == "drop":
            del section[last]
        elif what == "rename" and isinstance(section, dict):
            section[draw(keys | st.just(f"{last}s"))] = section.pop(last)
        elif what == "listed":
            section[last] = [section[last]]
        elif what == "added" and isinstance(section, dict):
            section[draw(keys)] = draw(junk)
        elif what == "alias":
            section[last] = draw(st.sampled_from([values, section, *values.values()]))  # perhaps itself
            break  # it may hold itself now, and has no list of places
        elif what == "deepspeed":
            values["deepspeed"] = {draw(st.sampled_from(DEEPSPEED)): draw(junk)}
        else:
            section[last] = draw(junk)
    overrides = draw(st.lists(st.builds("{}={}".format, texts, texts), max_size=1))
    return kind, values, overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(kind, path, overrides=()):
    """A config that writes and reads back as itself, or one printable line."""
    try:
        config = load_config(kind, path, list(overrides))
    except UserError as error:
        assert str(error).isprintable()
        assert 10 < len(str(error)) < 2000
        return None
    again = path.with_name("again.yaml")
    again.write_text(dump_config(config), "utf-8")
    assert load_config(kind, again) == config
    return config


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(bad_configs())
def test_generated_configs(folder, case):
    kind, values, overrides = case
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    read_or_refuse(kind, path, overrides)


def test_the_configs_that_are_damaged_are_right_before(folder):
    for name, (kind, _) in KINDS.items():
        shutil.copy(CONFIGS / name, folder / "right.yaml")
        assert read_or_refuse(kind, folder / "right.yaml") is not None


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "teacher: &t {path: *t}", "&a [*a]", "deepspeed: &d {x: *d}", "? [1, 2]\n: x", "2001-99-99: x", "x: 2001-99-99",
        "!!python/object/apply:os.system ['true']", "!!binary x", "length: " + "9" * 5000, "length: 0x" + "f" * 5000,
        "[" * 1100, "a: " * 50, BOMB, "deepspeed:\n" + BOMB.replace("\n", "\n  ").replace("a:", "  a:", 1), "\ufeffx: 1",
        "--- 1\n--- 2", "<<: 3", "<<: [1]", "train: !!set {a, b}", "null: 1", "{}", "%YAML 9.9\n---\nx: 1", "x: \x07",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [DistillConfig, PretrainConfig])
def test_yaml_that_is_out_of_the_ordinary(kind, text, folder):
    path = folder / "odd.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_config(kind, path)
    assert str(caught.value).isprintable()
