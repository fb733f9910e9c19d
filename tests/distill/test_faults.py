"""What goes wrong at three in the morning, injected; README's reliability table says what each test shows."""

import json
import os
import re
import resource
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from distill.runtime.checkpoints import checkpoint_folders, latest_checkpoint, verify_checkpoint
from distill.runtime.exits import PREEMPTED, RUN_FAILED, RunError
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World, miss_lost_processes
from distill.training.checkpoint import check_space
from teachers.errors import UserError
from tests.distill.line import Poisoned, train_line
from tests.distill.runs import (
    assert_same_weights,
    descendants,
    distil,
    fork,
    here,
    losses,
    start,
    wait_for_updates,
)
from tests.forks import FORKS

ZERO = "deepspeed.zero_optimization.stage=1"
"""DeepSpeed on one process, which torch alone would train."""


@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("where", ["loss_at", "gradient_at"])
def test_a_step_that_is_not_finite_is_skipped_and_written_down(tmp_path, stage, where):
    poisoned = Poisoned(**{where: (2,)})
    run = train_line(tmp_path / "run", poisoned, stage)
    lines = run.read_metrics()
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert "student/loss" not in lines[2]  # nothing that is not a number gets into the averages
    assert all(torch.isfinite(torch.tensor(line["student/loss"])) for i, line in enumerate(lines) if i != 2)
    [record] = [json.loads(line) for line in run.skipped.read_text().splitlines()]
    assert (record["update"], record["phase"], record["corpus_rows"]) == (3, "student", [8, 12])
    # the weights are those of five steps without the bad one: Adam's moments and counter did not see it either
    clean = train_line(tmp_path / "clean", Poisoned(), stage, updates=5)
    averages = [json.loads((latest_checkpoint(r) / "student-ema" / "weights.json").read_text()) for r in (run, clean)]
    assert averages[0] == averages[1]


def test_too_many_in_a_row_end_the_run_and_leave_the_checkpoints(tmp_path):
    with pytest.raises(RunError, match=r"3 updates in a row were not finite .update 5: student loss inf"):
        train_line(tmp_path / "run", Poisoned(loss_at=(0, 2, 3, 4)), 1)
    run = RunFolder(tmp_path / "run")
    assert len(run.skipped.read_text().splitlines()) == 4
    for folder in checkpoint_folders(run):
        verify_checkpoint(folder)
    assert latest_checkpoint(run).name == "update-00000004"


@pytest.mark.parametrize("engine", [[], [ZERO]], ids=["torch", "deepspeed"])
def test_a_diverged_distillation_ends_with_one_line_and_its_own_exit_code(tmp_path, engine):
    overrides = ["train.student.lr=1e30", "train.updates=20", "train.max_skipped=2", *engine]
    run = distil(tmp_path / "run", *overrides, code=RUN_FAILED)
    assert "2 updates in a row were not finite" in run.said
    assert "--allow-changes" in run.said


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_exits_75_and_resumes(tmp_path, processes):
    run = tmp_path / "run"
    # torchrun passes the signal on; the exit code it gives is its own
    process = (fork if processes == 1 else start)(
        run, "train.updates=6", "train.checkpoint_every=1000", processes=processes
    )
    wait_for_updates(run, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    if processes == 1:
        assert process.returncode == PREEMPTED, said[-2000:]
    assert "continue" in said
    assert "--resume" in said
    saved = latest_checkpoint(RunFolder(run))
    assert verify_checkpoint(saved)["update"] < 6
    resumed = distil(run, "train.updates=6", "train.checkpoint_every=1000", resume=True, processes=processes)
    whole = distil(tmp_path / "whole", "train.updates=6", processes=processes)
    assert_same_weights(resumed, whole, rtol=0, atol=0)
    assert torch.equal(losses(resumed), losses(whole))


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    """A limit on file size stands in for the disk: the same error from the same call, at a known place."""
    run = here(tmp_path / "run", "train.checkpoint_every=2", "train.updates=2", ZERO)
    command = fork(run.path, "train.checkpoint_every=2", "train.updates=6", ZERO, resume=True, allow_changes=True)
    [process] = command.processes
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
    _, said = command.communicate(timeout=200)
    said = " ".join(said.split())
    assert command.returncode == RUN_FAILED, said[-2000:]
    assert "Traceback" not in said
    assert "the checkpoint of update 4 could not be written" in said  # and training went on
    assert "the checkpoint of update 6 could not be written" in said
    assert "make room" in said
    assert [folder.name for folder in checkpoint_folders(run)] == ["update-00000002"]
    assert not list(run.checkpoints.glob(".partial-*"))
    verify_checkpoint(latest_checkpoint(run))
    resumed = here(run.path, "train.checkpoint_every=2", "train.updates=6", resume=True)
    assert resumed.read_metrics()[-1]["update"] == 6


def test_a_disk_too_small_is_found_before_the_first_step(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create("{}")
    with pytest.raises(UserError, match=r"GB free and 4 checkpoints of .* need .*; free some space"):
        check_space(run, {"student": SimpleNamespace(parameters=10**15)}, keep=2)


def test_a_folder_that_goes_away_does_not_end_the_training(tmp_path):
    run = tmp_path / "run"
    process = fork(run, "train.updates=8", "train.checkpoint_every=4")
    wait_for_updates(run, process)
    (run / "checkpoints").rename(run / "elsewhere")
    (run / "checkpoints").write_text("a file where the folder was")
    _, said = process.communicate(timeout=100)
    assert process.returncode == RUN_FAILED
    assert "could not be written" in said
    assert "Traceback" not in said
    assert RunFolder(run).read_metrics()[-1]["update"] == 8


def test_two_runs_into_one_folder_are_refused_by_a_lock(tmp_path):
    run = RunFolder(tmp_path / "run")
    command = fork(run.path, "train.updates=1000")
    wait_for_updates(run.path, command)
    [process] = command.processes
    holder = re.escape(f"{run.path} is in use by process {process.pid} on {socket.gethostname()} since ")
    with pytest.raises(UserError, match=holder):
        here(run.path, "train.updates=1000", resume=True)
    command.send_signal(signal.SIGKILL)
    command.communicate()
    run.lock()  # the kernel lets go of a dead process's lock


def test_changed_data_are_refused_unless_told(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times.\n" * 200)
    overrides = ["objective={name: didi_instruct}", "length=null", f"data={{path: {text}, length: 32}}"]
    run = here(tmp_path / "run", *overrides, "train.updates=2")
    text.write_text("It was the age of wisdom, it was the age of foolishness.\n" * 200)
    with pytest.raises(UserError, match=r"train\.updates is 3 but this run was started with 2.*--allow-changes"):
        here(run.path, *overrides, "train.updates=3", resume=True)
    with pytest.raises(UserError, match=r"the data is {'tokens': .*--allow-changes"):
        here(run.path, *overrides, "train.updates=2", resume=True)
    assert len(losses(here(run.path, *overrides, "train.updates=3", resume=True, allow_changes=True))) == 3


@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_dies_takes_the_other_down_with_a_message(tmp_path, dying):
    run = tmp_path / "run"
    command = fork(run, "train.updates=1000", "train.checkpoint_every=1", processes=2)
    wait_for_updates(run, command, updates=2)
    command.processes[dying].kill()
    killed = time.monotonic()
    _, said = command.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert command.processes[dying].exitcode == -signal.SIGKILL
    assert command.processes[1 - dying].exitcode == RUN_FAILED, said[-2000:]
    assert "of this run has gone; start again, a training with --resume: its last checkpoint is intact" in " ".join(
        said.split()
    )
    for folder in checkpoint_folders(RunFolder(run)):
        verify_checkpoint(folder)


def _silent_or_alive(rank, path, alive):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    if rank == 1 and not alive:
        time.sleep(30)  # alive for the system, but it gives no sign
    stop = threading.Event()
    if alive:
        threading.Timer(3, stop.set).start()
    miss_lost_processes(World(rank, 2, torch.device("cpu")), stop, period=0.1, patience=10)
    os._exit(0)


@pytest.mark.parametrize("alive", [True, False])
def test_a_process_that_hangs_is_missed_and_one_that_lives_is_not(tmp_path, alive):
    both = [
        FORKS.Process(target=_silent_or_alive, args=(rank, tmp_path / "store", alive), daemon=True) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    both[0].join(60)
    assert both[0].exitcode == (0 if alive else RUN_FAILED)
    both[1].kill()


def test_no_process_is_left_alone_with_an_error_on_the_main_one(tmp_path):
    """The other one must not wait in a barrier for a main process that has refused the folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    began = time.monotonic()
    command = fork(tmp_path / "run", processes=2)
    _, said = command.communicate(timeout=100)
    assert [process.exitcode for process in command.processes] == [2, 2]
    assert said.count("is not an empty folder; name a new one") == 1  # said once, not by each process
    assert time.monotonic() - began < 60


def test_a_killed_launcher_leaves_no_process_behind(tmp_path):
    """torchrun alone is killed; its processes get a SIGTERM from the kernel, save what they can, and go."""
    run = tmp_path / "run"
    process = start(run, "train.updates=1000", "train.checkpoint_every=1000", processes=2)
    wait_for_updates(run, process)
    left = descendants(process.pid)
    assert len(left) >= 2
    process.kill()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    process.communicate()
    RunFolder(run).lock()
    for folder in checkpoint_folders(RunFolder(run)):  # there may be none: their meeting point went with the launcher
        verify_checkpoint(folder)
