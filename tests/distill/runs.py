"""Real runs of the command, for tests that start, kill, poison and continue them."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from distill.commands.distil import distil as distil_here
from distill.config import DistillConfig, load_config
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import RunFolder
from tests.forks import Command

ROOT = Path(__file__).parents[2]
QUICK = ["evaluate.every=null", "train.log_every=1", "train.seed=3"]


def words(run, *overrides, resume=False, allow_changes=False):
    """The words of a distillation; ``overrides`` can override what makes tests quick."""
    flags = ["--resume"] * resume + ["--allow-changes"] * allow_changes
    return ["distill", "configs/smoke.yaml", "--run-dir", str(run), *flags, *QUICK, *overrides]


def fork(run, *overrides, processes=1, **kind):
    """Start a run in processes forked for it."""
    return Command(words(run, *overrides, **kind), processes)


def distil(run, *overrides, code=0, timeout=240, **kind):
    """Run to the end in forked processes; each must leave with exit code ``code``.

    Returns:
        The run's folder, with what was said on stderr as ``said``.
    """
    command = fork(run, *overrides, **kind)
    _, said = command.communicate(timeout)
    assert [process.exitcode for process in command.processes] == [code] * len(command.processes), said[-3000:]
    folder = RunFolder(run)
    folder.said = " ".join(said.split())
    if code:
        assert "Traceback" not in said
    return folder


def here(path, *overrides, resume=False, allow_changes=False):
    """A run in this very process, which saves its start; a mistake comes as it is raised."""
    config = load_config(DistillConfig, ROOT / "configs" / "smoke.yaml", [*QUICK, *overrides])
    distil_here(config, path, resume, allow_changes)
    return RunFolder(path)


def start(run, *overrides, processes=1, **kind):
    """Start a run as a person does, with torchrun if it has several processes, in a process group of its own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *torchrun * (processes > 1), "-m", "distill", *words(run, *overrides, **kind)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_updates(run, process, updates=1, seconds=120):
    """Wait until a run has logged so many updates, or has ended."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text("utf-8").count("\n") >= updates:
            return
        time.sleep(0.05)
    assert process.poll() is not None, "no update within the time"


def kill(process):
    """SIGKILL to every process of a run at once; torchrun gives each of its own a session of its own."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid):
    """Its children, theirs, and so on."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def final_weights(run):
    """The averaged student of the newest checkpoint."""
    [file] = (latest_checkpoint(run) / "student-ema").glob("*.safetensors")  # of a model, or of an adapter
    return load_file(file)


def losses(run):
    """(updates, 2): student's and critic's."""
    lines = [json.loads(line) for line in run.metrics.read_text("utf-8").splitlines()]
    return torch.tensor([[x["student/loss"], x["critic/loss"]] for x in lines if "student/loss" in x])


def assert_same_weights(one, other, **tolerance):
    """The averaged students of two runs are equal."""
    a, b = final_weights(one), final_weights(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def sign(checkpoint):
    """Make the manifest fit the files, as somebody who forges a checkpoint would."""
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.name != "manifest.json"]
    sums = {
        str(p.relative_to(checkpoint)): (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files
    }
    (checkpoint / "manifest.json").write_text(json.dumps(sums))
