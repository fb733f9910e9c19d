"""Every launcher of docs/launch.md gives two processes and the run that torchrun gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.equality import make_teacher, weight_difference
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import RunFolder
from tests.forks import ROOT, Command, free_port

BIN = Path(sys.executable).parent
COMMAND = ["distill", "configs/smoke.yaml"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "teacher"
    make_teacher(folder)
    return folder


def arguments(run, teacher):
    return ["distill", "configs/smoke.yaml", "--run-dir", str(run), f"teacher.path={teacher}", "length=16",
            "train.updates=2", "evaluate.every=null"]  # fmt: skip


def launch(launcher, run, teacher, **environment):
    """Run the command as the launcher's words have it."""
    done = subprocess.run(
        [*launcher, "distill", *arguments(run, teacher)], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def result(run):
    checkpoint = latest_checkpoint(RunFolder.open(run))
    assert (checkpoint / "student" / "rank-1.safetensors").is_file()  # the second process wrote its share
    return load_file(checkpoint / "student-ema" / "model.safetensors")


@pytest.fixture(scope="module")
def torchrun(teacher):
    run = teacher.with_name("torchrun")
    launch([BIN / "torchrun", "--standalone", "--nproc_per_node", "2", "-m"], run, teacher)
    return result(run)


def test_deepspeed(torchrun, teacher, tmp_path):
    words = [BIN / "deepspeed", "--num_gpus", "2", "--master_port", free_port(), "--module"]
    launch(words, tmp_path / "run", teacher, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert weight_difference(result(tmp_path / "run"), torchrun) == 0


def test_accelerate(torchrun, teacher, tmp_path):
    words = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(), "-m"]
    launch(words, tmp_path / "run", teacher)
    assert weight_difference(result(tmp_path / "run"), torchrun) == 0


def test_processes_started_one_by_one_as_srun_does(torchrun, teacher, tmp_path):
    command = Command(arguments(tmp_path / "run", teacher), processes=2)
    _, said = command.communicate()
    assert command.returncode == 0, said[-3000:]
    assert weight_difference(result(tmp_path / "run"), torchrun) == 0
