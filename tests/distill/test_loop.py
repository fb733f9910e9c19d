"""The loop: batches split anywhere, processes, kills and resumes give one and the same run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.checkpoint import checkpoint_folders, latest_checkpoint
from distill.config import OptimizerConfig
from distill.engines import learning_rate_factor
from distill.loop import termination
from distill.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
QUICK = ["evaluate.every=null", "train.log_every=1"]


def command(run, *overrides, processes=1, resume=False, config="configs/smoke.yaml"):
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [*launch, "-m", "distill", "distill", config, "--run-dir", str(run), *(["--resume"] if resume else [])]
    return [*words, *QUICK, *overrides]


def distil(run, *overrides, **kind):
    """Through the real command: overrides of QUICK can be overridden again."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(run, *overrides, **kind), cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return RunFolder.open(run)


def final_weights(run):
    return load_file(latest_checkpoint(run) / "student-ema" / "model.safetensors")


def losses(run):
    lines = [json.loads(line) for line in run.metrics.read_text("utf-8").splitlines()]
    return torch.tensor([[x["student/loss"], x["critic/loss"]] for x in lines if "student/loss" in x])


def assert_same_weights(one, other, **tolerance):
    a, b = final_weights(one), final_weights(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The smoke run, in one process and one micro-batch of 8."""
    return distil(tmp_path_factory.mktemp("smoke") / "run")


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


def test_two_processes_equal_one(uninterrupted, tmp_path):
    two = distil(tmp_path / "run", processes=2)
    torch.testing.assert_close(losses(two), losses(uninterrupted), rtol=1e-4, atol=1e-5)
    assert_same_weights(two, uninterrupted, rtol=0, atol=2e-5)


def test_didi_instruct_trains_on_teacher_samples(tmp_path):
    overrides = ["objective={name: didi_instruct}", "teacher_samples=16", "teacher_sample_steps=4"]
    run = distil(tmp_path / "run", *overrides, "train.updates=2", "train.precision=bfloat16")
    assert torch.isfinite(losses(run)).all()
    lines = [json.loads(line) for line in run.metrics.read_text("utf-8").splitlines()]
    assert 0 <= lines[-1]["critic/accuracy"] <= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_a_random_moment_and_resumed_ends_with_identical_weights(tmp_path, processes):
    """SIGKILL, wherever it falls (start, update, saving), as often as it takes; bit for bit the same in the end."""
    overrides = ["train.checkpoint_every=2", "train.updates=8"]
    whole = distil(tmp_path / "whole", *overrides, processes=processes)
    moment = random.Random(os.getpid())
    run, kills = tmp_path / "killed", 0
    for attempt in range(12):
        resume = (run / "config.yaml").exists()
        words = command(run, *overrides, processes=processes, resume=resume)
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        # the first two attempts are killed soon after training starts, so that there is something to resume
        deadline = time.monotonic() + 120
        while attempt < 2 and process.poll() is None and time.monotonic() < deadline:
            if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0:
                break
            time.sleep(0.05)
        if attempt < 2:
            time.sleep(moment.uniform(0, 1.5))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        _, errors = process.communicate(timeout=200)
        for folder in checkpoint_folders(RunFolder(run)):
            assert (folder / "manifest.json").is_file()  # what has a whole checkpoint's name is whole
        if process.returncode == 0:
            break
        assert process.returncode < 0, errors[-3000:]
    assert process.returncode == 0
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
    lowest = min(watched, key=lambda line: line["watch/judge_perplexity"])["update"]
    assert (run.checkpoints / "best").read_text("utf-8").strip() == f"update-{lowest:08d}"
    # a learning rate that destroys the student: the watch must end the run and say why
    doomed = distil(tmp_path / "doomed", "evaluate.every=2", "train.updates=200", "train.student.lr=0.3", "train.ema=0")
    assert doomed.read_metrics()[-1]["update"] < 200


def test_wandb_offline(tmp_path, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_CONSOLE", "off")):
        monkeypatch.setenv(name, value)
    run = distil(tmp_path / "run", "train.wandb=fewstep-test", "train.updates=2")
    assert list((run.path / "wandb").glob("offline-run-*/*.wandb"))


def test_resume_refuses_another_config(uninterrupted):
    done = subprocess.run(
        command(uninterrupted.path, "train.student.lr=0.5", resume=True), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "train.student.lr is 0.5 but this run was started with 0.0001" in done.stderr
    assert "Traceback" not in done.stderr


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
