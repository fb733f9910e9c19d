"""A run's folder: resolved config, metrics, checkpoints, samples, results; never written over by accident."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from teachers.errors import UserError

# what may differ between a run and its continuation without changing what is computed
FREE_TO_CHANGE = {
    "train.log_every", "train.checkpoint_every", "train.checkpoint_minutes", "train.keep", "train.wandb",
    "train.micro_batch", "evaluate",
}  # fmt: skip


def check_new_folder(path: str | Path) -> Path:
    """Check, without creating anything, that an output folder can be made, before hours are spent on what goes into it.

    Raises:
        UserError: it exists and is not empty, or can not be written.
    """
    path = Path(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
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


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename."""
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
    """Paths of a run and the two ways to open one: new, or to be continued."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"

    @classmethod
    def create(cls, path: str | Path, config: str) -> RunFolder:
        """Make a new run folder with its resolved config."""
        run = cls(new_folder(path))
        run.checkpoints.mkdir()
        write_whole(run.config, config)
        return run

    @classmethod
    def reopen(cls, path: str | Path, config: str) -> RunFolder:
        """Open a run to continue it.

        Raises:
            UserError: no run there, or its config is damaged or differs in something that changes the result.
        """
        run = cls.open(path)
        try:
            started_with = yaml.safe_load(run.config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            started_with = None
        if not isinstance(started_with, dict):
            raise UserError(f"{run.config} is damaged: it holds no config; put it back, or start a new run")
        before, now = flatten(started_with), flatten(yaml.safe_load(config))
        for key in sorted(before.keys() | now.keys()):
            free = key in FREE_TO_CHANGE or key.split(".")[0] in FREE_TO_CHANGE
            if not free and before.get(key) != now.get(key):
                raise UserError(
                    f"{key} is {now.get(key)!r} but this run was started with {before.get(key)!r}; "
                    "resume with the run's own value, or start a new run"
                )
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run to read it."""
        run = cls(path)
        if not run.config.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml; give the folder named by --run")
        return run

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        return [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]

    def drop_metrics_after(self, update: int) -> None:
        """Forget metrics of updates that a killed run made after its last checkpoint, and a half-written line."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text("utf-8").splitlines():
            try:
                if json.loads(line)["update"] <= update:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue
        write_whole(self.metrics, "".join(kept))
