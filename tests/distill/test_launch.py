"""Every launcher of docs/launch.md gives two processes and the run that torchrun gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.equality import make_teacher, weight_difference
from distill.checkpoint import latest_checkpoint
from distill.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMMAND = ["distill", "configs/smoke.yaml"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch") / "teacher"
    make_teacher(folder)
    return folder


def arguments(run, teacher):
    return ["distill", *COMMAND, "--run-dir", str(run), f"teacher.path={teacher}", "length=16", "train.updates=2",
            "evaluate.every=null"]  # fmt: skip


def start(words, **environment):
    return subprocess.Popen(
        words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", **environment}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]


def result(run):
    checkpoint = latest_checkpoint(RunFolder.open(run))
    assert (checkpoint / "student" / "rank-1.safetensors").is_file()  # the second process wrote its share
    return load_file(checkpoint / "student-ema" / "model.safetensors")


@pytest.fixture(scope="module")
def torchrun(teacher):
    run = teacher.with_name("torchrun")
    finish(start([BIN / "torchrun", "--standalone", "--nproc_per_node", "2", "-m", *arguments(run, teacher)]))
    return result(run)


def test_deepspeed(torchrun, teacher, tmp_path):
    words = [BIN / "deepspeed", "--num_gpus", "2", "--master_port", free_port(), "--module"]
    finish(start([*words, *arguments(tmp_path / "run", teacher)], PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}"))
    assert weight_difference(result(tmp_path / "run"), torchrun) == 0


def test_accelerate(torchrun, teacher, tmp_path):
    words = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(), "-m"]
    finish(start([*words, *arguments(tmp_path / "run", teacher)]))
    assert weight_difference(result(tmp_path / "run"), torchrun) == 0


def test_processes_started_one_by_one_as_srun_does(torchrun, teacher, tmp_path):
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [sys.executable, "-m", *arguments(tmp_path / "run", teacher)]
    finish(*(start(words, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)))
    assert weight_difference(result(tmp_path / "run"), torchrun) == 0
