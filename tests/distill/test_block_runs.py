"""Students of blocks through the commands: distilled in their own blocks, resumed, measured, written and read again."""

import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fewstep
from benchmarks.equality import make_teacher
from distill.commands.distil import distil
from distill.commands.evaluate import evaluate_command
from distill.commands.export import export_command
from distill.commands.generate import generate_command
from distill.config import DistillConfig, validate
from distill.data.teacher_rows import FILE
from distill.finished import open_student
from distill.runtime.checkpoints import checkpoint_folders
from distill.runtime.run_folder import RunFolder
from teachers.errors import UserError
from teachers.families import resolve
from tests.distill.runs import assert_same_weights, final_weights, losses
from tests.forks import Command

LENGTH = 32
OPTIMIZER = {"lr": 1e-3}
KINDS = {
    "integral_kl": {"rollout": {"name": "k_step", "steps": [1, 2]}},
    "certainty": {},
    "trajectory": {},
    "sdtt": {"first_steps": 8},
    "step_reduction": {"steps": 3, "group_size": 2},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A random teacher of full attention, and the same network with blocks of 4 and of 16."""
    home = tmp_path_factory.mktemp("blocks")
    make_teacher(home / "full", LENGTH)
    for size in (4, 16):
        make_teacher(home / f"blocks{size}", LENGTH)
        resolve(str(home / f"blocks{size}")).load().with_blocks(size).save(home / f"blocks{size}")
    return home


def config_of(teacher, kind="integral_kl", **sections):
    train = {"updates": 4, "batch": 4, "precision": "float32", "student": OPTIMIZER, "log_every": 1, "seed": 3}
    if kind == "integral_kl":
        train["critic"] = OPTIMIZER
    values = {
        "teacher": {"path": str(teacher)},
        "objective": {"name": kind, **KINDS[kind]},
        "sampler": "planner" if kind == "step_reduction" else "dilated",
        "length": LENGTH,
        "teacher_samples": 8,
        "teacher_sample_steps": 8,
        "evaluate": {"steps": [1, 2], "teacher_steps": 4, "samples": 4, "precision": "float32"},
    }
    train |= sections.pop("train", {})
    return validate(DistillConfig, values | {"train": train} | sections)


@pytest.mark.parametrize("size", [4, 16])
def test_from_a_teacher_of_blocks_to_an_export_that_writes_in_them(size, home, tmp_path):
    run = distil(config_of(home / f"blocks{size}"), tmp_path / "run")
    written = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    for sampler in (written["sampler"], written["evaluate"]["sampler"]):
        assert (sampler["name"], sampler["block_length"], sampler["budget"]) == ("dilated", size, "block")
    assert (run / FILE).is_file()  # what is before its blocks, the teacher wrote

    rows = json.loads(evaluate_command(run).read_text("utf-8"))["rows"]
    passes = {(row["model"], row["steps"]): row["nfe"] for row in rows}
    blocks = LENGTH // size
    assert passes["student", 2] == 2 * blocks
    assert passes["teacher", 1] == passes["student", 1] == blocks
    assert blocks < passes["teacher", 4] <= 4 * blocks  # ancestral: a pass that writes nothing is none

    exported = export_command(run, tmp_path / "exported", steps=2)
    assert open_student(exported).sampler.block_length == size
    texts = [generate_command(str(folder), steps=2, num=2, seed=1) for folder in (run, exported)]
    assert texts[0] == texts[1]
    assert fewstep.load_student(exported).spec.block_size == size


@pytest.mark.parametrize("objective", [name for name in KINDS if name != "integral_kl"])
@pytest.mark.parametrize("teacher", ["blocks4", "full"])
def test_objectives_in_blocks(objective, teacher, home, tmp_path):
    """Of a teacher that looks at whole rows as well: its student alone has blocks."""
    sections = {} if teacher == "blocks4" else {"blocks": {"size": 4}}
    run = RunFolder(distil(config_of(home / teacher, objective, **sections), tmp_path / "run"))
    lines = run.read_metrics()
    assert len(lines) == 4
    assert all(math.isfinite(line["student/loss"]) for line in lines)
    assert all(line["student/grad_norm"] > 0 for line in lines)
    student = open_student(run.path)
    assert (student.denoiser.spec.attention, student.denoiser.spec.block_size) == ("block", 4)
    assert (student.sampler.block_length, student.sampler.budget) == (4, "block")


def apart(one, other, start):
    """How far two runs have ended from each other, as a part of how far they came."""
    ours, theirs = final_weights(one), final_weights(other)
    between = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours)
    return math.sqrt(between / sum(float((theirs[name] - start[name]).square().sum()) for name in ours))


def test_micro_batches_engines_and_resuming_give_the_same_run(home, tmp_path):
    whole = RunFolder(distil(config_of(home / "blocks4"), tmp_path / "whole"))
    parts, start = {"micro_batch": 2}, load_file(home / "blocks4" / "model.safetensors")
    for name, sections in {
        "parts": {"train": parts},
        "zero": {"train": parts, "deepspeed": {"zero_optimization": {"stage": 2}}},
        "zero 3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    }.items():
        other = RunFolder(distil(config_of(home / "blocks4", **sections), tmp_path / name))
        torch.testing.assert_close(losses(other), losses(whole), rtol=1e-4, atol=1e-5)
        assert apart(other, whole, start) < 0.02
    # a run that begins again at its second update
    config = config_of(home / "blocks4", train={"checkpoint_every": 2, "keep": 3})
    resumed = RunFolder(distil(config, tmp_path / "resumed"))
    last = checkpoint_folders(resumed)[-1]
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    last.rmdir()
    distil(config, resumed.path, resume=True)
    assert_same_weights(resumed, whole, rtol=0, atol=0)


def train(folder, teacher):
    """A training whose weights are spread over the processes of a launch."""
    distil(config_of(teacher, deepspeed={"zero_optimization": {"stage": 3}}), folder)


def test_two_processes_give_the_run_of_one(home, tmp_path):
    """Texts have blocks with nothing to write, and passes are collective: each process makes as many."""
    one = RunFolder(distil(config_of(home / "blocks4"), tmp_path / "one"))
    launched = Command([str(tmp_path / "two"), str(home / "blocks4")], 2, action=train)
    _, said = launched.communicate()
    assert launched.returncode == 0, said[-3000:]
    torch.testing.assert_close(losses(RunFolder(tmp_path / "two")), losses(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["teacher", "student"])
def test_whose_text_is_before_a_block(prefix, home, tmp_path):
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": "the cat sat on the mat. " * 4}) + "\n" for _ in range(40)), "utf-8")
    sections = {"data": {"path": str(data), "length": LENGTH}, "length": None}
    run = distil(config_of(home / "blocks4", blocks={"prefix": prefix}, **sections), tmp_path / "run")
    assert (run / FILE).is_file() == (prefix == "teacher")
    of_data = distil(config_of(home / "blocks4", **sections), tmp_path / "data")
    assert not (of_data / FILE).is_file()
    assert not torch.equal(losses(RunFolder(of_data)), losses(RunFolder(run)))


@pytest.mark.parametrize(
    ("teacher", "sections", "parts"),
    [
        ("blocks16", {"sampler": {"name": "dilated", "block_length": 4}}, ["block_length is 4", "blocks of 16"]),
        ("blocks16", {"sampler": "rgas", "objective": {"name": "integral_kl"}}, ["rgas", "rollouts"]),
        ("blocks16", {"length": 24}, ["24 tokens", "blocks of 16"]),
        ("blocks4", {"blocks": {"size": 16}}, ["blocks of 16", "teacher of 4", "divisor"]),
        ("blocks4", {"objective": {"name": "integral_kl", "rollout": {"steps": [8]}}}, ["has 8", "4 tokens", "block"]),
        ("full", {"blocks": {"prefix": "student"}}, ["blocks.prefix", "blocks.size"]),
        ("full", {"blocks": {"size": 4}, "student": {"adapter": {"rank": 2}}}, ["adapter", "full attention"]),
        ("full", {"blocks": {"size": 0}}, ["size", "greater than 0"]),
        ("blocks4", {"teacher_sample_steps": 7}, ["teacher_sample_steps is 7", "8 blocks"]),
    ],
)
def test_blocks_that_do_not_fit_are_one_line(teacher, sections, parts, home, tmp_path):
    with pytest.raises(UserError) as refusal:
        distil(config_of(home / teacher, **sections), tmp_path / "run")
    message = str(refusal.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


def test_a_prefix_that_an_objective_can_not_be_given(home, tmp_path):
    with pytest.raises(UserError, match="certainty learns from rows that are given"):
        distil(config_of(home / "blocks4", "certainty", blocks={"prefix": "student"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_notebook_gives_the_student_blocks_of_its_own(home):
    teacher = fewstep.load_teacher(str(home / "full"))
    objective = fewstep.IntegralKL(rollout={"steps": [1, 2]})
    blocks = fewstep.Blocks(size=4, prefix="student")
    student = fewstep.distil(teacher, objective, updates=2, batch=4, length=LENGTH, lr=1e-3, seed=3, blocks=blocks)
    assert (student.denoiser.spec.attention, student.denoiser.spec.block_size) == ("block", 4)
    generated = student.generate(steps=2, seed=3)  # each step reveals something
    assert (generated.sampler.block_length, generated.sampler.budget) == (4, "block")
    assert generated.nfe.tolist() == [2 * LENGTH // 4]
    distiller = fewstep.Distiller(teacher, objective, updates=2, batch=4, length=LENGTH, lr=1e-3, seed=3, blocks=blocks)
    torch.testing.assert_close(distiller.train().denoiser.state_dict(), student.denoiser.state_dict(), rtol=0, atol=0)
