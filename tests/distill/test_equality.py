"""Losses and weights do not depend on processes, ZeRO stage or micro-batches; benchmarks/equality.py at CI's size."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.equality import OBJECTIVES, loss_difference, make_teacher, weight_difference
from distill.commands.distil import distil
from distill.config import DistillConfig, load_config
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import RunFolder
from tests.forks import Command

COMMON = ["length=16", "evaluate.every=null", "train.updates=6", "train.checkpoint_every=100", "train.log_every=1"]
COMMON += ["train.seed=1"]
WHOLE, SPLIT, STAGES = "whole", "split", [f"zero-{stage}" for stage in range(4)]


def train(folder, runs):
    """Several trainings, one after another, in the processes of one launch."""
    for name, overrides in json.loads(runs).items():
        distil(load_config(DistillConfig, "configs/smoke.yaml", overrides), Path(folder) / name)


def launch(folder, teacher, ways, processes):
    """Train each objective in each of ``ways``, name → overrides, in one launch."""
    runs = {
        f"{objective}-{way}": [f"teacher.path={teacher}", *COMMON, *of_objective, *overrides]
        for objective, of_objective in OBJECTIVES.items()
        for way, overrides in ways.items()
    }
    launched = Command([folder, json.dumps(runs)], processes, action=train)
    _, said = launched.communicate()
    assert launched.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equality")
    make_teacher(folder / "teacher")
    launch(folder, folder / "teacher", {WHOLE: [], SPLIT: ["train.micro_batch=4"]}, processes=1)
    stages = {way: [f"deepspeed.zero_optimization.stage={stage}"] for stage, way in enumerate(STAGES)}
    launch(folder, folder / "teacher", stages, processes=2)
    return folder


def losses(run):
    return {p: torch.tensor([x[f"{p}/loss"] for x in run.read_metrics()]) for p in ("student", "critic")}


def weights(run):
    return load_file(latest_checkpoint(run) / "student-ema" / "model.safetensors")


@pytest.mark.parametrize("way", [SPLIT, *STAGES])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_way_to_train_gives_the_same_run(folder, objective, way):
    whole, other = (RunFolder.open(folder / f"{objective}-{w}") for w in (WHOLE, way))
    curves, expected = losses(other), losses(whole)
    for phase, curve in expected.items():
        assert len(curve) == 6
        assert loss_difference(curves[phase], curve) <= 1e-4
    # the bound is 1e-4, but these weights have moved by no more than 6 × lr = 6e-4
    assert weight_difference(weights(other), weights(whole)) <= 2e-5
    moved = weight_difference(weights(whole), load_file(folder / "teacher" / "model.safetensors"))
    assert moved > 1e-4


def test_the_differences_would_be_seen(folder):
    """Two objectives, and a curve moved by a part in a thousand, are told apart."""
    one, other = (RunFolder.open(folder / f"{objective}-{WHOLE}") for objective in OBJECTIVES)
    assert weight_difference(weights(one), weights(other)) > 1e-4
    curve = losses(one)["critic"]
    assert loss_difference(curve * 1.001, curve) > 1e-4
