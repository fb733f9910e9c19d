"""Runs whose student and critic are adapters, through the real commands."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill.config import DistillConfig, ModelConfig, load_config
from distill.finished import open_student
from distill.models import load_teacher
from distill.runtime.checkpoints import best_checkpoint
from distill.runtime.run_folder import RunFolder
from students.adapters import merge_adapter
from teachers.errors import UserError
from tests.forks import fewstep

ROOT = Path(__file__).parents[2]
ADAPTERS = ["student.adapter={rank: 4, targets: [q_proj, up_proj]}", "objective.ratio.adapter={rank: 2}"]
SHORT = ["train.updates=4", "train.checkpoint_every=2", "length=16", "train.student.lr=0.01"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Student and auxiliary denoiser adapted, watched, one base in float32."""
    path = tmp_path_factory.mktemp("adapters") / "run"
    fewstep("distill", "configs/smoke.yaml", "--run-dir", path, *SHORT, *ADAPTERS, "evaluate.every=4",
            "evaluate.precision=bfloat16")  # fmt: skip
    return RunFolder.open(path)


def averaged(run):
    return load_file(best_checkpoint(run) / "student-ema" / "adapter_model.safetensors")


def test_only_adapters_are_saved_and_trained(run):
    tensors = averaged(run)
    assert len(tensors) == 2 * 2 * len({name.split(".")[4] for name in tensors})  # A and B of two layers a block
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())  # B started at zero
    sizes = {p.relative_to(run.path).parts[2]: p for p in run.path.rglob("rank-0.safetensors")}
    assert sizes.keys() == {"student", "critic"}
    assert all(p.stat().st_size < 500_000 for p in sizes.values())  # the teacher's 2 M parameters would be 24 MB
    assert any("watch/judge_perplexity" in line for line in run.read_metrics())


def test_resuming_an_adapter_run_ends_with_the_same_bits(run, tmp_path):
    resumed = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    (resumed.checkpoints / "best").unlink(missing_ok=True)
    shutil.rmtree(resumed.checkpoints / "update-00000004")
    config = yaml.safe_load(resumed.config.read_text("utf-8"))
    assert config["student"]["adapter"] == {"rank": 4, "alpha": 32.0, "targets": ["q_proj", "up_proj"]}
    fewstep("distill", resumed.config, "--run-dir", resumed.path, "--resume", "evaluate.every=null")
    one = load_file(run.checkpoints / "update-00000004" / "student-ema" / "adapter_model.safetensors")
    other = load_file(resumed.checkpoints / "update-00000004" / "student-ema" / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluate_and_export_give_the_merged_student(run, tmp_path):
    small = ["samples=4", "steps=[2]", "teacher_steps=2", "bootstrap=10", "data=null", "precision=float32"]
    fewstep("evaluate", run.path, "--out", tmp_path / "evaluation", *small)
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert {row["model"] for row in result["rows"]} == {"teacher", "student"}
    assert result["models"]["teacher"]["parameters"] == result["models"]["student"]["parameters"]

    fewstep("export", run.path, "--out", tmp_path / "export", "--steps", 2)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    student = open_student(run.path)
    assert student.canvas_length == 16
    canvas = torch.full((2, 16), student.denoiser.spec.mask_id)
    canvas[:, ::2] = 70
    with torch.no_grad():
        expected, found = student.denoiser.model(canvas).logits, stock(canvas).logits
        teacher = load_teacher(ModelConfig(path="bundled:teacher"))[0]
        start = teacher.model(canvas).logits
        by_hand = merge_adapter(teacher, best_checkpoint(run) / "student-ema").model(canvas).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(by_hand, expected, rtol=0, atol=0)
    assert (expected - start).abs().max() > 1e-2  # something was learnt


@pytest.mark.parametrize("student", ["student.adapter={rank: 4}", "student.adapter=null"])
def test_an_adapted_discriminator_trains_in_bfloat16(tmp_path, student):
    """With an adapted student, and with a student that trains all its weights."""
    objective = "objective={name: didi_instruct, ratio: {adapter: {rank: 2}}}"
    few = ["train.updates=2", "length=16", "teacher_samples=16", "teacher_sample_steps=4", "evaluate.every=null"]
    fewstep("distill", "configs/smoke.yaml", "--run-dir", tmp_path / "run", *few, objective, student,
            "train.precision=bfloat16")  # fmt: skip
    run = RunFolder.open(tmp_path / "run")
    lines = run.read_metrics()
    assert lines[-1]["student/grad_norm"] > 0 < lines[-1]["critic/grad_norm"]
    assert torch.isfinite(torch.tensor([[line["student/loss"], line["critic/loss"]] for line in lines])).all()
    assert open_student(run.path).denoiser.spec.mask_id is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.adapter.rank=0", "student.adapter.rank is 0: input should be greater than 0"),
        ("student.adapter.targets=some", "student.adapter.targets: 'some' is neither 'all-linear' nor a list of layer"),
        ("student.adapter.targets=[]", r"student.adapter.targets: \[\] is neither"),
        ("student.adapter.rnak=3", r"unknown key student.adapter.rnak; did you mean 'rank'\?"),
        ("objective.ratio.adapter.alpha=-1", "objective.ratio.adapter.alpha is -1"),
        ("student={init: somewhere, adapter: {}}", "leave out student.init to train the adapter"),
    ],
)
def test_mistakes_in_a_config_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config(DistillConfig, ROOT / "configs" / "smoke.yaml", [override])


def test_a_target_that_is_not_there_is_named_before_anything_is_written(tmp_path):
    message = "adapter target 'query' is the end of no linear layer's name"
    words = ["distill", "configs/smoke.yaml", "--run-dir", tmp_path / "run", "student.adapter.targets=[query]"]
    _, said = fewstep(*words, code=2)
    assert message in said
    assert not (tmp_path / "run").exists()
