"""Checkpoints written whole or not at all, checksummed, and read back only when intact."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from distill.run_folder import RunFolder, write_whole
from distill.world import World
from students.adapters import AdaptedDenoiser
from students.student import Ema
from teachers.errors import UserError

PREFIX = "update-"


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


def mark_best(run: RunFolder, update: int) -> None:
    """Mark the checkpoint of ``update`` as the best; it is never pruned."""
    write_whole(run.checkpoints / "best", f"{PREFIX}{update:08d}\n")


def save_checkpoint(
    run: RunFolder, world: World, update: int, engines: dict[str, Any], ema: Ema, state: dict[str, Any], keep: int
) -> Path:
    """Write everything that resuming after ``update`` needs, then give the folder its name, then drop old ones.

    Args:
        state: plain values to get back from `load_checkpoint`.
        keep: how many checkpoints stay, besides the best.
    """
    final = run.checkpoints / f"{PREFIX}{update:08d}"
    partial = run.checkpoints / f".partial-{final.name}"
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    world.barrier()
    for name, engine in engines.items():
        engine.save_checkpoint(str(partial / name), tag="engine", save_latest=False)
    world.barrier()
    if world.is_main:
        ema.denoiser.save(partial / "student-ema")
        write_whole(partial / "state.json", json.dumps({"update": update, "ema_updates": ema.updates, **state}))
        write_whole(partial / "manifest.json", json.dumps(_manifest(partial), indent=1))
        for path in partial.rglob("*"):
            _fsync(path)
        if final.exists():  # saved at this update by a run that was killed before it went on
            shutil.rmtree(final)
        os.replace(partial, final)
        _fsync(run.checkpoints)
        _prune(run, keep)
    world.barrier()
    return final


def _prune(run: RunFolder, keep: int) -> None:
    best = best_checkpoint(run)
    for folder in checkpoint_folders(run)[:-keep]:
        if folder != best:
            doomed = folder.with_name(f".partial-{folder.name}")
            os.replace(folder, doomed)  # never a half-deleted folder under a whole one's name
            shutil.rmtree(doomed)


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest and return its state.

    Raises:
        UserError: a file is missing, truncated or changed.
    """
    remedy = "remove that folder to go back to the checkpoint before it"
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        for name, (size, digest) in manifest.items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"checkpoint {folder} is damaged: {name} is missing; {remedy}")
            if path.stat().st_size != size:
                raise UserError(
                    f"checkpoint {folder} is damaged: {name} has {path.stat().st_size} bytes, not {size}; {remedy}"
                )
            if _sha256(path) != digest:
                raise UserError(f"checkpoint {folder} is damaged: the content of {name} has changed; {remedy}")
        return json.loads((folder / "state.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"checkpoint {folder} is damaged: its manifest cannot be read; {remedy}") from error


def load_checkpoint(folder: Path, engines: dict[str, Any], ema: Ema) -> dict[str, Any]:
    """Restore engines and average from a verified checkpoint; returns its state."""
    state = verify_checkpoint(folder)
    for name, engine in engines.items():
        engine.load_checkpoint(str(folder / name), tag="engine")
    if isinstance(ema.denoiser, AdaptedDenoiser):
        ema.denoiser.load(folder / "student-ema")
    else:
        tensors = load_file(folder / "student-ema" / "model.safetensors")
        missing, unexpected = ema.denoiser.model.load_state_dict(tensors, strict=False)
        tied = set(ema.denoiser.model.all_tied_weights_keys)
        if unexpected or set(missing) - tied:
            raise UserError(f"checkpoint {folder} is of another model: {(unexpected + missing)[0]} does not fit")
    ema.updates = state["ema_updates"]
    return state


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_size, _sha256(p)) for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
