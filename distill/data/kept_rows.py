"""What a teacher has written, as files in a run's folder: with all that it depends on, and with a digest of it."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.runtime.run_folder import RunFolder
from teachers.errors import UserError
from teachers.files import publish

FILE = "teacher-rows.safetensors"
"""All rows, once they are there."""
PARTS = "teacher-rows"
"""The folder of what is there while the teacher still writes."""
GENERATOR = "generator"


@dataclass(frozen=True)
class Parts:
    """What a teacher that was interrupted has written: a file for each batch of rows.

    Beside its tensors a file holds the state of the random numbers behind them, so that what follows is what would
    have followed.

    Attributes:
        folder: made with the first part.
        origin: all that the rows depend on; a part of another origin is none.
    """

    folder: Path
    origin: str

    def count(self) -> int:
        """Parts that are there, from the first one on."""
        number = 0
        while self._path(number).is_file() and metadata(self._path(number)).get("origin") == self.origin:
            number += 1
        return number

    def read(self, count: int, generator: torch.Generator) -> tuple[list[dict[str, Tensor]], float]:
        """The first parts, and the seconds that they took; the generator goes on from there.

        Raises:
            UserError: one is damaged.
        """
        parts = [load(self._path(number)) for number in range(count)]
        states = [part.pop(GENERATOR) for part in parts]
        if states:
            generator.set_state(states[-1])
        return parts, sum(float(metadata(self._path(number))["seconds"]) for number in range(count))

    def keep(self, number: int, tensors: dict[str, Tensor], generator: torch.Generator, seconds: float) -> None:
        """Write a part.

        Raises:
            UserError: there is no room.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _no_room(self.folder, error) from error
        save(self._path(number), {**tensors, GENERATOR: generator.get_state()}, self.origin, seconds)

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def writing_seconds(run: RunFolder) -> float:
    """How long the teacher took for what a run has kept; 0 if it keeps nothing.

    Raises:
        UserError: it is damaged.
    """
    path = run.path / FILE
    return float(metadata(path)["seconds"]) if path.is_file() else 0.0


def save(path: Path, tensors: dict[str, Tensor], origin: str, seconds: float) -> None:
    """Write tensors, whole or not at all.

    Raises:
        UserError: there is no room.
    """
    said = {"origin": origin, "sha256": _digest(tensors), "seconds": f"{seconds:.3f}"}
    try:
        publish(path, lambda partial: save_file(tensors, partial, said))
    except (OSError, SafetensorError) as error:
        raise _no_room(path, error) from error


def metadata(path: Path) -> dict[str, str]:
    """What was written beside tensors.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error


def load(path: Path) -> dict[str, Tensor]:
    """The tensors that `save` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error
    if metadata(path).get("sha256") != _digest(tensors):
        raise _damaged(path)
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def _no_room(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot write {path} ({error}); free some space, then start again with --resume")


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; remove it, and the teacher writes the same rows again")
