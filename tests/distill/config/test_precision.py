"""What ``precision: auto`` becomes, and that it stays so."""

import os

import pytest
import torch
import yaml

from distill.config import DistillConfig, PretrainConfig, load_config, precision
from distill.config.precision import faster_precision, settled
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import start_world
from distill.training.opening import open_run
from tests.distill.runs import ROOT, here
from tests.forks import Command

AUTO = ["train.precision=auto", "evaluate.precision=auto"]
SMOKE = ROOT / "configs" / "smoke.yaml"


def precisions(config):
    return config.train.precision, config.evaluate.precision


def recorded(run):
    return [yaml.safe_load(run.config.read_text("utf-8"))[name]["precision"] for name in ("train", "evaluate")]


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(1.0, 10.0, "float32"), (1.0, 0.8, "float32"), (1.0, 0.7, "bfloat16")]
)
def test_bfloat16_must_be_clearly_faster(float32, bfloat16, chosen, machine, monkeypatch):
    machine(faster="float32")
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision, "product_seconds", seconds.get)
    assert faster_precision() == chosen


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_says_it_itself(native, chosen, machine, monkeypatch):
    machine(faster="float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert faster_precision() == chosen


def test_a_product_is_timed():
    assert 0 < precision.product_seconds(torch.float32) < 1


def test_only_auto_is_settled(machine):
    machine(faster="bfloat16")
    plain = load_config(DistillConfig, SMOKE, ["evaluate.precision=auto"])
    assert precisions(settled(plain)) == ("float32", "bfloat16")
    pretraining = load_config(PretrainConfig, ROOT / "configs" / "pretrain" / "novels-judge.yaml")
    assert settled(pretraining).train.precision == "bfloat16"
    first = load_config(DistillConfig, SMOKE, [*AUTO, "deepspeed.zero_optimization.stage=0"])
    assert precisions(settled(first)) == ("float32", "bfloat16"), "ZeRO 0 is wrong in bfloat16"


def test_a_run_records_it_and_keeps_it_on_another_machine(machine, tmp_path):
    machine(faster="bfloat16")
    run = here(tmp_path / "run", *AUTO, "train.updates=1")
    assert recorded(run) == ["bfloat16", "bfloat16"]
    machine(faster="float32")
    here(run.path, *AUTO, "train.updates=1", resume=True)
    assert recorded(run) == ["bfloat16", "bfloat16"]


def opened(folder):
    """Each process is faster in something else."""
    mine = torch.bfloat16 if os.environ["RANK"] == "0" else torch.float32
    precision.product_seconds = lambda dtype: 1.0 if dtype == mine else 2.0
    world = start_world()
    config = open_run(RunFolder(folder), load_config(DistillConfig, SMOKE, AUTO), world, False, False)
    print(*precisions(config))
    world.finish()


def test_the_main_process_decides_for_all(tmp_path):
    command = Command([tmp_path / "run"], processes=2, action=opened)
    written, said = command.communicate()
    assert command.returncode == 0, said[-3000:]
    assert written.splitlines() == ["bfloat16 bfloat16"] * 2
