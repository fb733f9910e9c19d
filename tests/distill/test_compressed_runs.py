"""What is made of a compressed model is plain: every command reads the run, and an adapter's export merges."""

import json

import pytest
import torch

from benchmarks.equality import make_teacher
from distill.export import export
from distill.finished import open_student
from distill.generation import generate
from distill.runtime.checkpoints import AVERAGE, latest_checkpoint
from teachers.errors import UserError
from tests.distill.runs import here, losses


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A plain model, and the same compressed."""
    plain = tmp_path_factory.mktemp("compressed") / "plain"
    make_teacher(plain)
    return plain, export(open_student(plain), plain.with_name("int8"), "int8")


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.path=INT8"],
        ["teacher.path=INT8", "student.adapter={rank: 4}"],
        ["teacher.path=PLAIN", "student.init=INT8"],
    ],
    ids=["copied", "adapted", "initialised"],
)
def test_what_is_distilled_from_a_compressed_model_is_read_by_every_command(overrides, folders, tmp_path):
    plain, int8 = folders
    words = [word.replace("PLAIN", str(plain)).replace("INT8", str(int8)) for word in overrides]
    run = here(tmp_path / "run", *words, "train.updates=2", "length=16")
    written = latest_checkpoint(run) / AVERAGE / "config.json"
    assert not written.exists() or "quantization_config" not in json.loads(written.read_text())
    student = open_student(run.path)
    assert len(generate(student, seed=0, length=8).texts) == 1
    out = export(student, tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert not student.compressed


@pytest.mark.parametrize("compression", ["int8", "int4"])
def test_a_compressed_teacher_is_spread_over_devices_or_refused(compression, folders, tmp_path):
    plain, _ = folders
    path = export(open_student(plain), tmp_path / compression, compression)
    words = [f"teacher.path={path}", "train.updates=2", "length=16"]
    whole = here(tmp_path / "whole", *words)
    spread = here(tmp_path / "spread", *words, "teacher.placement=dispatched", "teacher.max_memory={cpu: 90KB}")
    assert torch.equal(losses(spread), losses(whole))
    with pytest.raises(UserError, match=r"is 'sharded', and model .* is compressed.* to replicated or dispatched"):
        here(tmp_path / "sharded", *words, "teacher.placement=sharded")
    assert not (tmp_path / "sharded").exists()
