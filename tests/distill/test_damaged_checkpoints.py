"""Checkpoints cut, flipped, forged and swapped: one line for a person, or a right result."""

import json
import pickle
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import RunFolder
from tests.distill.line import Poisoned, train_line
from tests.distill.runs import sign

FILES = ["student/rank-0.safetensors", "student-ema/weights.json", "state.json", "manifest.json"]
DAMAGE = {
    "removed": lambda data: None,
    "emptied": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "a byte more": lambda data: data + b"x",
    "a bit flipped": lambda data: flip(data, random.Random(len(data)).randrange(len(data))),
    "the first bit flipped": lambda data: flip(data, 0),
    "noise": lambda data: random.Random(0).randbytes(len(data)),
    "a pickle": lambda data: pickle.dumps({"weight/weights": [1.0]}),
    "not UTF-8": lambda data: b"\xff\xfe" + data,
}


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture(scope="module")
def two_updates(tmp_path_factory):
    return train_line(tmp_path_factory.mktemp("line") / "run", Poisoned(), updates=2).path


@pytest.fixture
def checkpoint(two_updates, tmp_path):
    shutil.copytree(two_updates, tmp_path / "run")
    return next((tmp_path / "run" / "checkpoints").glob("update-00000002"))


def resume(checkpoint):
    """Go on to update 3, from the checkpoint of update 2 alone.

    Returns:
        The averaged weights, or what a person is told.
    """
    run = checkpoint.parents[1]
    shutil.rmtree(run / "checkpoints" / "update-00000001", ignore_errors=True)
    try:
        train_line(run, Poisoned(), updates=3, resume=True)
    except ValueError as error:
        told = str(error)
        assert told.count("\n") == 0
        assert len(told) < 500
        assert "; " in told  # what is wrong; what to do
        return told
    return json.loads((latest_checkpoint(RunFolder(run)) / "student-ema" / "weights.json").read_text())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(checkpoint, name, damage):
    path = checkpoint / name
    data = DAMAGE[damage](path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    told = resume(checkpoint)
    if name != "manifest.json":
        assert name.split("/")[-1] in told
    assert "is damaged" in told
    assert "remove that folder" in told


FORGED_STATES = {
    "no counters": lambda state: state.pop("adam_steps"),
    "no student": lambda state: state["adam_steps"].pop("student"),
    "words for numbers": lambda state: state["adam_steps"].update(student="many"),
    "null": lambda state: state.update(ema_updates=None),
    "the update is text": lambda state: state.update(update="2"),
    "no update": lambda state: state.pop("update"),
}


@pytest.mark.parametrize("forgery", FORGED_STATES)
def test_a_state_of_another_kind_is_refused(checkpoint, forgery):
    state = json.loads((checkpoint / "state.json").read_text())
    FORGED_STATES[forgery](state)
    (checkpoint / "state.json").write_text(json.dumps(state))
    sign(checkpoint)
    assert isinstance(resume(checkpoint), str)


FORGED_TENSORS = {
    "a moment is missing": lambda tensors: tensors.pop("exp_avg/weights"),
    "the average is missing": lambda tensors: tensors.pop("average/weights"),
    "another shape": lambda tensors: tensors.update({"weight/weights": torch.ones(5)}),
    "no shape": lambda tensors: tensors.update({"weight/weights": torch.tensor(1.0)}),
    "nothing": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("forgery", FORGED_TENSORS)
def test_tensors_of_another_network_are_refused(checkpoint, forgery):
    path = checkpoint / "student" / "rank-0.safetensors"
    tensors = load_file(path)
    FORGED_TENSORS[forgery](tensors)
    save_file(tensors, path)
    sign(checkpoint)
    assert "weights" in resume(checkpoint)


@pytest.mark.parametrize("content", [pickle.dumps({"weight/weights": [1.0]}), b"", b"x" * 100])
def test_a_forged_file_that_is_no_safetensors_is_refused_and_not_unpickled(checkpoint, content):
    (checkpoint / "student" / "rank-0.safetensors").write_bytes(content)
    sign(checkpoint)
    assert "is damaged" in resume(checkpoint)


@pytest.mark.parametrize("name", ["../../config.yaml", "/etc/hostname", "student/../../best"])
def test_a_manifest_that_looks_outside_is_refused(checkpoint, name):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[name] = [1, "0"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert "outside it" in resume(checkpoint)


@pytest.mark.parametrize("manifest", [[], 3, {"state.json": 1}, {"state.json": [1]}, {}, None])
def test_a_manifest_of_another_kind_is_refused(checkpoint, manifest):
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert "is damaged" in resume(checkpoint)


def test_a_planted_file_is_refused(checkpoint):
    save_file({"weight/weights": torch.zeros(4)}, checkpoint / "student" / "rank-9.safetensors")
    assert "rank-9.safetensors is not in its manifest" in resume(checkpoint)


def test_other_types_and_more_tensors_do_no_harm(checkpoint, two_updates, tmp_path):
    shutil.copytree(two_updates, tmp_path / "untouched")
    right = resume(tmp_path / "untouched" / "checkpoints" / "update-00000002")
    path = checkpoint / "student" / "rank-0.safetensors"
    save_file({k: v.double() for k, v in load_file(path).items()} | {"more": torch.ones(1)}, path)
    sign(checkpoint)
    assert resume(checkpoint) == right
