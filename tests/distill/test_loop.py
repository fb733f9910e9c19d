"""The loop: batches split anywhere, processes, kills and resumes give one and the same run."""

import json
import os
import signal
import time

import pytest
import torch

from distill.config import OptimizerConfig
from distill.runtime.checkpoints import checkpoint_folders, verify_checkpoint
from distill.runtime.run_folder import RunFolder
from distill.training.engine import learning_rate_factor
from distill.training.guards import termination
from tests.distill.runs import assert_same_weights, distil, final_weights, fork, losses, wait_for_updates


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The smoke run, in one process and one micro-batch of 8."""
    return distil(tmp_path_factory.mktemp("smoke") / "run")


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    """The smoke run in two processes."""
    return distil(tmp_path_factory.mktemp("two") / "run", processes=2)


def test_metrics_have_a_line_for_every_logged_update(uninterrupted):
    lines = [json.loads(line) for line in uninterrupted.metrics.read_text("utf-8").splitlines()]
    assert [line["update"] for line in lines] == list(range(1, 9))
    for name in ("student/loss", "critic/loss", "student/grad_norm", "critic/grad_norm", "student/lr", "seconds"):
        assert all(name in line for line in lines)
    assert all(line["tokens"] == 8 * 32 and line["tokens_per_second"] > 0 for line in lines)
    assert lines[-1]["critic/grad_norm"] > 0


def test_one_batch_of_8_equals_8_micro_batches_of_1(uninterrupted, tmp_path):
    split = distil(tmp_path / "run", "train.micro_batch=1")
    torch.testing.assert_close(losses(split), losses(uninterrupted), rtol=1e-4, atol=1e-5)
    # Adam divides by the root of tiny squares, so the last bits of a sum may move a weight by a part of lr
    assert_same_weights(split, uninterrupted, rtol=0, atol=2e-5)


def test_two_processes_equal_one(uninterrupted, in_two):
    torch.testing.assert_close(losses(in_two), losses(uninterrupted), rtol=1e-4, atol=1e-5)
    assert_same_weights(in_two, uninterrupted, rtol=0, atol=2e-5)


def test_didi_instruct_trains_on_teacher_samples(tmp_path):
    overrides = ["objective={name: didi_instruct}", "teacher_samples=16", "teacher_sample_steps=4"]
    run = distil(tmp_path / "run", *overrides, "train.updates=2", "train.precision=bfloat16")
    assert torch.isfinite(losses(run)).all()
    lines = [json.loads(line) for line in run.metrics.read_text("utf-8").splitlines()]
    assert 0 <= lines[-1]["critic/accuracy"] <= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment_and_resumed_ends_with_identical_weights(tmp_path, processes, uninterrupted, in_two):
    """SIGKILL, wherever it falls (start, update, saving), as often as it takes; bit for bit the same in the end."""
    overrides = ["train.checkpoint_every=1", "train.updates=8"]
    whole = in_two if processes == 2 else uninterrupted
    moments = (0.4, 1.3)  # updates after the third that is logged
    run, kills = tmp_path / "killed", 0
    for attempt in range(12):
        resume = (run / "config.yaml").exists()
        command = fork(run, *overrides, processes=processes, resume=resume)
        if attempt < len(moments):
            wait_for_updates(run, command, updates=3)  # the first checkpoint is whole: there is something to resume
            time.sleep(moments[attempt] / whole.read_metrics()[-1]["updates_per_second"])
            if command.poll() is None:
                command.send_signal(signal.SIGKILL)
                kills += 1
        _, errors = command.communicate(timeout=200)
        for folder in checkpoint_folders(RunFolder(run)):
            verify_checkpoint(folder)  # what has a whole checkpoint's name is whole
        if command.returncode == 0:
            break
        assert command.returncode < 0, errors[-3000:]
    assert command.returncode == 0
    assert kills >= 1
    resumed = RunFolder.open(run)
    assert_same_weights(resumed, whole, rtol=0, atol=0)
    assert torch.equal(losses(resumed), losses(whole))


def test_a_finished_run_has_a_plot_and_resuming_it_changes_nothing(uninterrupted):
    before = final_weights(uninterrupted)
    assert (uninterrupted.path / "training.png").read_bytes().startswith(b"\x89PNG")
    distil(uninterrupted.path, resume=True)
    after = final_weights(uninterrupted)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(uninterrupted.read_metrics()) == 8


def test_the_watch_measures_marks_the_best_and_stops_a_collapse(tmp_path):
    overrides = ["evaluate.every=2", "train.updates=4", "evaluate.entropy_floor=0.01"]
    run = distil(tmp_path / "run", *overrides)
    watched = [line for line in run.read_metrics() if "watch/judge_perplexity" in line]
    assert [line["update"] for line in watched] == [2, 4]
    lowest = min(watched, key=lambda line: line["watch/relative_perplexity"])["update"]
    assert (run.checkpoints / "best").read_text("utf-8").strip() == f"update-{lowest:08d}"
    # a learning rate that destroys the student: the watch must end the run and say why
    doomed = distil(tmp_path / "doomed", "evaluate.every=2", "train.updates=200", "train.student.lr=0.3", "train.ema=0")
    assert doomed.read_metrics()[-1]["update"] < 200


def test_resume_refuses_another_config(uninterrupted):
    refused = distil(uninterrupted.path, "train.student.lr=0.5", "train.ema=0.5", resume=True, code=2)
    assert "train.ema is 0.5 but this run was started with 0.9; train.student.lr is 0.5 but" in refused.said
    assert "--allow-changes" in refused.said


def test_a_sigterm_and_its_echo_ask_for_a_checkpoint_and_a_later_one_kills():
    """A scheduler signals the processes and their launcher, which passes it on: that must not kill the checkpoint."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with termination() as terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(write, b"saving" if terminated.is_set() else b"not asked")
            clock = time.monotonic
            time.monotonic = lambda: clock() + 6
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert os.read(read, 20) == b"saving"
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
    os.close(read)


def test_learning_rate_schedule():
    config = OptimizerConfig(lr=1.0, warmup=4, decay=0.5, final=0.1)
    factors = [learning_rate_factor(u, config, 20) for u in range(21)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[9] == factors[10] == 1.0
    assert factors[15] == pytest.approx(0.55)
    assert factors[20] == pytest.approx(0.1)
