"""Checkpoints as whoever reads them finds them; `distill.training.checkpoint` says what is in one, and writes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill.runtime.run_folder import RunFolder
from teachers.errors import UserError

PREFIX = "update-"
AVERAGE = "student-ema"


def checkpoint_folders(run: RunFolder) -> list[Path]:
    """Whole checkpoints, oldest first. A folder gets its name only when everything in it is on disk."""
    return sorted(p for p in run.checkpoints.glob(f"{PREFIX}*") if p.is_dir())


def latest_checkpoint(run: RunFolder) -> Path | None:
    """The newest whole checkpoint, or None before the first."""
    folders = checkpoint_folders(run)
    return folders[-1] if folders else None


def best_checkpoint(run: RunFolder) -> Path | None:
    """The checkpoint marked best, else the newest."""
    marker = run.checkpoints / "best"
    if marker.is_file():
        folder = run.checkpoints / marker.read_text("utf-8").strip()
        if folder.parent == run.checkpoints and folder.is_dir():
            return folder
    return latest_checkpoint(run)


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return its state.

    Raises:
        UserError: a file is missing, truncated, changed or planted, or the manifest names one outside the folder.
    """
    remedy = "remove that folder to go back to the checkpoint before it"
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        for name, (size, digest) in manifest.items():
            path = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(f"checkpoint {folder} is damaged: its manifest names {name!r}, outside it; {remedy}")
            if not path.is_file():
                raise UserError(f"checkpoint {folder} is damaged: {name} is missing; {remedy}")
            if path.stat().st_size != size:
                raise UserError(
                    f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes, not {size}; {remedy}"
                )
            if sha256(path) != digest:
                raise UserError(f"checkpoint {folder} is damaged: the content of {name} has changed; {remedy}")
        for path in folder.rglob("*.safetensors"):
            name = str(path.relative_to(folder))
            if name not in manifest:
                raise UserError(f"checkpoint {folder} is damaged: {name} is not in its manifest; {remedy}")
        state = json.loads((folder / "state.json").read_text("utf-8"))
        if "state.json" not in manifest or not isinstance(state["update"], int):
            raise TypeError
        return state
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"checkpoint {folder} is damaged: its manifest cannot be read; {remedy}") from error


@torch.no_grad()
def load_network(folder: Path, phase: str, network: nn.Module) -> None:
    """Fill what a phase trains of ``network``, and its buffers, from a checkpoint that `verify_checkpoint` accepts.

    Raises:
        UserError: it is of another network.
    """
    files = TensorFiles(folder / phase)
    trained = {f"weight/{name}": p for name, p in network.named_parameters() if p.requires_grad}
    kept = {f"buffer/{name}": buffer for name, buffer in network.named_buffers() if f"buffer/{name}" in files.where}
    files.fill(trained | kept)


class TensorFiles:
    """The tensors of all safetensors files of a folder, by name, read one at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            files = [safe_open(path, "pt") for path in sorted(folder.glob("rank-*.safetensors"))]
        except (OSError, SafetensorError) as error:
            raise UserError(f"checkpoint {folder.parent} is damaged: {error}; remove that folder") from error
        self.where = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def get(self, name: str) -> Tensor:
        """A tensor."""
        if name not in self.where:
            raise UserError(
                f"checkpoint {self.folder.parent} is of another model: it holds no {name} for {self.folder.name}; "
                "resume with the config that the run was started with"
            )
        return self.where[name].get_tensor(name)

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Copy into tensors, by name, those of the same shapes here."""
        for name, tensor in tensors.items():
            value = self.get(name)
            if value.shape != tensor.shape:
                raise UserError(
                    f"checkpoint {self.folder.parent} is of another model: {name} of {self.folder.name} has shape "
                    f"{tuple(value.shape)}, not {tuple(tensor.shape)}; "
                    "resume with the config that the run was started with"
                )
            tensor.copy_(value)


def sha256(path: Path) -> str:
    """Of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
