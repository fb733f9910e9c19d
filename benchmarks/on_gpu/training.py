"""Whole runs of the command, each in a process of its own: engines, precisions, and a run that is killed and resumed.

This process must not touch the device: a fork of one that did can not use it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.on_gpu.setting import Figures, Job
from benchmarks.shapes import Size
from distill.config import DistillConfig, dump_config, load_config
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import RunFolder
from distill.training.distillation import in_run_folder

FORKS = get_context("fork")
UPDATES, PATIENCE = 4, 60.0
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {},
    "torch, bfloat16": {"train.precision": "bfloat16"},
    "ZeRO 1": {"deepspeed.zero_optimization.stage": 1},
    "ZeRO 3": {"deepspeed.zero_optimization.stage": 3},
    "ZeRO 1, bfloat16": {"deepspeed.zero_optimization.stage": 1, "train.precision": "bfloat16"},
}


def training(job: Job) -> Iterator[tuple[str, Figures]]:
    """Torch alone, a kill, and then each engine against torch alone in float32."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job.setting.checked.teacher(folder / "teacher")
        plain: list[float] = []
        for name, settings in ENGINES.items():
            if name.startswith("ZeRO") and importlib.util.find_spec("deepspeed") is None:
                yield name, {"left out": "deepspeed is not installed"}
                continue
            run = RunFolder(folder / name.replace(" ", "-"))
            figures = whole(config_of(job.setting.checked, folder, settings), run)
            plain = plain or losses(run)
            worst = max((abs(a - b) / abs(a) for a, b in zip(plain, losses(run), strict=False)), default=None)
            yield name, {**figures, "updates": len(losses(run)), "largest relative difference of a loss": worst}
            if run.path.name == "torch":
                yield "a kill and a resume", killed(job.setting.checked, folder, run)


def config_of(size: Size, folder: Path, settings: dict[str, Any]) -> DistillConfig:
    """A short run of the checked network."""
    config = size.config(folder / "teacher", updates=UPDATES, precision="float32", checkpoint_every=1)
    written = folder / "config.yaml"
    written.write_text(dump_config(config), "utf-8")
    return load_config(DistillConfig, written, [f"{key}={value}" for key, value in settings.items()])


def whole(config: DistillConfig, run: RunFolder) -> Figures:
    """Run it to its end; how that went."""
    start = time.perf_counter()
    process = started(config, run)
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
    return {"exit code": process.exitcode, "seconds": time.perf_counter() - start}


def started(config: DistillConfig, run: RunFolder, resume: bool = False) -> Any:
    """The run in a process of its own."""
    process = FORKS.Process(target=distil, args=(config, run.path, resume))
    process.start()
    return process


def distil(config: DistillConfig, path: Path, resume: bool) -> None:
    """What such a process does. Kernels are those that give the same bits each time, so that runs can be compared."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    in_run_folder(config, path, resume)
    sys.stdout.flush()
    os._exit(0)


def killed(size: Size, folder: Path, alone: RunFolder) -> Figures:
    """SIGKILL within a run and a resume, beside a run that was left alone, and another such."""
    config, again = config_of(size, folder, {}), RunFolder(folder / "again")
    code = whole(config, again)["exit code"]
    run = RunFolder(folder / "killed")
    process = started(config, run)
    deadline = time.monotonic() + PATIENCE
    while process.exitcode is None and time.monotonic() < deadline and len(losses(run)) < UPDATES // 2:
        time.sleep(0.005)
    process.kill()
    process.join()
    made = len(losses(run))
    resumed = started(config, run, resume=True)
    resumed.join(PATIENCE)
    return {
        "exit codes": f"{code}, {process.exitcode}, {resumed.exitcode}",
        "killed after updates": made,
        "two whole runs, largest difference of a weight": difference(again, alone),
        "killed and whole run, largest difference of a weight": difference(run, alone),
        "losses are the same": losses(run) == losses(alone),
    }


def losses(run: RunFolder) -> list[float]:
    """Of the critic, which is never 0, update by update."""
    if not run.metrics.exists():
        return []
    return [line["critic/loss"] for line in run.read_metrics() if "critic/loss" in line]


def difference(one: RunFolder, other: RunFolder) -> float | None:
    """Of the averaged students' weights; None where a run left none."""
    checkpoints = [latest_checkpoint(run) for run in (one, other)]
    if None in checkpoints:
        return None
    first, second = (
        load_file(next((folder / "student-ema").glob("*.safetensors"))) for folder in checkpoints if folder is not None
    )
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
