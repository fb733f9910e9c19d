"""A run's folder: resolved config, metrics, checkpoints, samples, results; never written over by accident."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import yaml

from teachers.errors import UserError
from teachers.files import publish

# what may differ between a run and its continuation without changing what is computed, but for rounding
FREE_TO_CHANGE = {
    "train.log_every", "train.checkpoint_every", "train.checkpoint_minutes", "train.keep", "train.wandb",
    "train.micro_batch", "train.max_skipped", "train.gradient_checkpointing", "evaluate", "deepspeed",
    "teacher.placement",
}  # fmt: skip
LOCK = ".lock"


def check_new_folder(path: str | Path) -> Path:
    """Check, without creating anything, that an output folder can be made, before hours are spent on what goes into it.

    Raises:
        UserError: it exists and is not empty, or can not be written.
    """
    path = Path(path)
    try:
        if path.exists() and (not path.is_dir() or any(p.name != LOCK for p in path.iterdir())):
            raise UserError(f"{path} exists and is not an empty folder; name a new one, or remove it first")
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; name a folder you may write to") from error
    above = next(p for p in [path, *path.absolute().parents] if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "may not be written to" if above.is_dir() else "is a file"
        raise UserError(f"cannot write to {path}: {above} {reason}; name a folder you may write to")
    return path


def new_folder(path: str | Path) -> Path:
    """Create an output folder.

    Raises:
        UserError: it exists and is not empty, or can not be written.
    """
    path = check_new_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; name a folder you may write to") from error
    return path


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class RunFolder:
    """Paths of a run and the ways to open one: new, to be continued, or to be read."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.skipped = self.path / "skipped.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self._lock: Any = None

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run to read it."""
        run = cls(path)
        run.check_exists()
        return run

    def check_exists(self) -> None:
        """Check that this is a run's folder.

        Raises:
            UserError: it is not.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml; give the folder named by --run")

    def create(self, config: str) -> None:
        """Make the folder of a new run with its resolved config, and lock it."""
        new_folder(self.path)
        self.lock()
        if any(p.name != LOCK for p in self.path.iterdir()):
            raise UserError(f"{self.path} has just been taken by another run; name a new folder")
        publish(self.config, config)

    def started_with(self) -> dict[str, Any]:
        """The run's resolved config, as plain values.

        Raises:
            UserError: no run there, or its config is damaged.
        """
        self.check_exists()
        try:
            values = yaml.safe_load(self.config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            values = None
        if not isinstance(values, dict):
            raise UserError(f"{self.config} is damaged: it holds no config; put it back, or start a new run")
        return values

    def reopen(self, config: str, allow_changes: bool = False) -> None:
        """Lock a run to continue it.

        Raises:
            UserError: no run there, one that another process continues, or its config is damaged or differs in
                something that changes the result, and changes are not allowed.
        """
        self.check_exists()
        self.lock()
        changes = config_changes(self.started_with(), yaml.safe_load(config))
        if changes and not allow_changes:
            raise UserError(
                f"{'; '.join(changes)}; resume with the run's own values, start a new run, or allow it with "
                "--allow-changes"
            )
        publish(self.config, config)

    def lock(self) -> None:
        """Keep other runs out of this folder until this process ends, however it ends.

        Raises:
            UserError: another process holds the folder.
        """
        try:
            self._lock = (self.path / LOCK).open("a+", encoding="utf-8")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (self.path / LOCK).read_text("utf-8").strip() or "another process"
            raise UserError(
                f"{self.path} is in use by {holder}; wait for it, stop it, or name another folder"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; make it writable, or free space"
            ) from error
        self._lock.truncate(0)
        self._lock.write(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        self._lock.flush()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        append_line(self.metrics, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        return read_lines(self.metrics)

    def drop_metrics_after(self, update: int) -> None:
        """Forget lines on updates that a killed run made after its last checkpoint, and half-written ones."""
        for path in (self.metrics, self.skipped):
            if path.exists():
                kept = [
                    json.dumps(line) + "\n" for line in read_lines(path) if line.get("update", update + 1) <= update
                ]
                publish(path, "".join(kept))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a JSON line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file; what a kill or a full disk left half-written is passed over."""
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def config_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two configs and changes the result, a sentence each."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key} is {new.get(key)!r} but this run was started with {old.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE_TO_CHANGE and key.split(".")[0] not in FREE_TO_CHANGE and old.get(key) != new.get(key)
    ]
