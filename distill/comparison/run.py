"""One run of a comparison: its folder, its command, and how it ended."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.run_folder import LOCK, RunFolder, read_lines
from distill.runtime.world import LAUNCHER
from teachers.errors import UserError

LOOK = 0.2  # seconds between looks at what runs
PATIENCE = 600  # seconds that a run of a killed comparison may take to end its update, save and leave


@dataclass(frozen=True)
class Run:
    """One run of one config: its folder, and beside it its log and its result, which is there when all is done."""

    label: str
    config: Path
    folder: Path
    overrides: tuple[str, ...]
    updates: int
    seed: int
    planned_seconds: float | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def result(self) -> Path:
        """What became of it."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def checkpoint(self) -> Path | None:
        """The one after the last update, once there is one."""
        last = latest_checkpoint(RunFolder(self.folder))
        return last if last is not None and last.name.endswith(f"-{self.updates:08d}") else None

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        path = RunFolder(self.folder).metrics
        return read_lines(path) if path.is_file() else []

    def done_updates(self) -> int:
        """How far it is, read from the end of its metrics."""
        path = RunFolder(self.folder).metrics
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            *lines, _unfinished = file.read().split(b"\n")
        return json.loads(lines[-1])["update"] if lines else 0

    def words(self) -> list[str]:
        """The command that starts or resumes it."""
        resume = ["--resume"] if (self.folder / "config.yaml").is_file() else []
        command = [sys.executable, "-m", "distill", "distill", str(self.config), "--run-dir", str(self.folder)]
        return [*command, *resume, *self.overrides, f"train.updates={self.updates}", f"train.seed={self.seed}"]


def start(words: list[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start a run that writes what it says into a file, and ends when this process does, however that ends."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    with log.open("ab") as said:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)


def wait_until_free(folder: Path) -> None:
    """Wait for a process that still holds a run: the comparison that started it was killed, it saves and leaves.

    Raises:
        UserError: it does not.
    """
    path = folder / LOCK
    deadline = time.monotonic() + PATIENCE
    while path.is_file():
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = path.read_text("utf-8").strip() or "another process"
                    raise UserError(f"{folder} is in use by {holder}; stop it, then start again") from None
        time.sleep(LOOK)


def why_failed(code: int, log: str) -> str:
    """Why a run ended with exit code ``code``, in a line.

    Args:
        log: what it said.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*error\b", line, re.IGNORECASE)]
    said = (errors or lines or ["it said nothing"])[-1][:300]
    if code >= 0:
        return f"exit code {code}: {said}"
    hint = ", as for want of memory" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}; last line: {said}"


def parameters_trained(checkpoint: Path) -> int:
    """How many weights the optimisers moved, of all networks together."""
    count = 0
    for file in checkpoint.glob("*/rank-*.safetensors"):
        with safe_open(file, "pt") as tensors:
            if file.parent.name != "target":
                shapes = [tensors.get_slice(k).get_shape() for k in tensors.keys() if k.startswith("weight/")]  # noqa: SIM118
                count += sum(int(torch.Size(shape).numel()) for shape in shapes)
    return count
