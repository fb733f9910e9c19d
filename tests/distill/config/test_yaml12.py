"""What a value in a config is: YAML 1.2's core schema, read and written."""

import pytest
import yaml

from distill.config.yaml12 import read_yaml, write_yaml
from tests.distill.config.small import DISTIL, distil, load_text, refused

TEXTS = [
    "1e5", "5e8", "1e-4", "1.", ".5", "010", "0o17", "0x1f", "0b11", "1_000", "12", "-3", "yes", "no", "on", "off", "y",
    "true", "Null", "~", "", "<<", "=", "1:30", "1:30.5", "2001-01-01", ".inf", ".NaN", "~/x", "a: b", "#",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E-4", 1e-4), ("1.0e-4", 1e-4), ("5e8", 5e8), ("5e+8", 5e8), ("2e0", 2.0), (".5", 0.5),
        ("1.", 1.0), ("-1.5e3", -1500.0), ("12", 12), ("+3", 3), ("010", 10), ("0o17", 15), ("0x1F", 31),
        ("true", True), ("False", False), ("~", None), ("null", None), (".inf", float("inf")), ("-.inf", -float("inf")),
        # numbers, booleans and dates of YAML 1.1
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("1:30", "1:30"), ("1_000", "1_000"),
        ("0b11", "0b11"), ("2001-01-01", "2001-01-01"), ("~/x", "~/x"), ("1e", "1e"), ("e5", "e5"), ("'1e5'", "1e5"),
    ],
)  # fmt: skip
def test_plain_values(text, value):
    for where, read in (("value", read_yaml(text)), ("list", read_yaml(f"[{text}]")[0])):
        assert (type(read), read) == (type(value), value), where


@pytest.mark.parametrize("reader", [read_yaml, yaml.safe_load], ids=["1.2", "1.1"])
def test_what_is_written_is_read_back_by_either_version(reader):
    values = {
        "texts": TEXTS,
        "numbers": [1e5, 1e-5, 2e-4, 1e22, 3, 0],
        "rest": [True, None, {}],
        **{t: 1 for t in TEXTS},
    }
    assert reader(write_yaml(values)) == values


def test_numbers_in_a_file_and_on_the_command_line_are_the_same(tmp_path):
    text = yaml.safe_dump(DISTIL).replace("lr: 0.0001", "lr: 1e-4").replace("updates: 2", "updates: 2e0")
    assert "lr: 1e-4" in text
    assert "updates: 2e0" in text
    train = load_text(tmp_path, text).train
    same = distil(tmp_path, "train.updates=2e0", "train.student.lr=1e-4").train
    for one in (train, same):
        assert one.student.lr == 1e-4
        assert (type(one.updates), one.updates) == (int, 2)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.updates=2.5", "2.5"),
        ("train.updates=1:30", "'1:30'"),
        ("train.batch=1e400", "inf"),
        ("train.student.lr=.inf", "inf"),
        ("teacher.path=1e5", "100000.0"),
        ("deepspeed.zero_optimization.reduce_bucket_size=5.5", "5.5"),
        ("deepspeed.zero_optimization.reduce_bucket_size=1_000:30", "'1_000:30'"),
    ],
)
def test_a_number_of_another_kind_is_refused_with_its_value(override, value, tmp_path):
    refused(lambda: distil(tmp_path, override), override.partition("=")[0].split(".")[-1], f"is {value}")


def test_words_that_yaml_once_took_for_booleans_are_text(tmp_path):
    assert distil(tmp_path, "teacher.path=on", "train.wandb=no").model_dump()["teacher"]["path"] == "on"
    assert distil(tmp_path, "train.wandb=no").train.wandb == "no"


@pytest.mark.parametrize("text", ["length: 16\nlength: 8", "train: {batch: 1, updates: 2, batch: 3}"])
def test_a_key_that_stands_twice_is_refused(text, tmp_path):
    refused(lambda: load_text(tmp_path, text), "stands twice", "c.yaml")


def test_an_alias_is_merged_and_overridden():
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}
