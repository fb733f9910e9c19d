"""Checkpoints written whole or not at all, checksummed, of no world size and no ZeRO stage, and safetensors only.

A checkpoint is a folder ``update-N``:

- ``student/rank-K.safetensors``, ``critic/…``: float32 weights, Adam's moments and the average by parameter name, each
  process having written its share of the names; any number of processes at any ZeRO stage reads them back;
- ``target/rank-0.safetensors``: where the objective has a target, its weights;
- ``student-ema/``: the averaged student, loadable by `teachers.families.load_denoiser`;
- ``state.json``: the update, counters, what the watch keeps; ``manifest.json``: size and SHA-256 of every file, last.

It is written under another name in the background while training goes on, and renamed when all processes are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.runtime.messages import warn
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from distill.training.engine import STATE, Engine
from students.student import Ema
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.files import files_below, fsync, partial_path, publish, publish_partial, remove

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


def checkpoint_bytes(engines: dict[str, Engine], target: Denoiser | None = None) -> int:
    """Bytes of a checkpoint's tensors: three float32 copies of what trains, two of the averaged student; the target."""
    trained = {phase: engine.parameters for phase, engine in engines.items()}
    kept = sum(p.nbytes for p in target.parameters()) if target is not None else 0
    return 4 * (len(STATE) * sum(trained.values()) + 2 * trained["student"]) + kept


def check_space(run: RunFolder, engines: dict[str, Engine], keep: int, target: Denoiser | None = None) -> None:
    """Check, before the first step, that the checkpoints will fit on the disk.

    Raises:
        UserError: there is no room for the one being written beside those that are kept.
    """
    one = checkpoint_bytes(engines, target)
    there = sum(p.stat().st_size for p in run.checkpoints.rglob("*") if p.is_file())
    needed, free = one * (keep + 2) - there, shutil.disk_usage(run.path).free  # best, and the one being written
    if free < needed:
        raise UserError(
            f"{run.path} has {free / 1e9:.2f} GB free and {keep + 2} checkpoints of {one / 1e9:.2f} GB need "
            f"{needed / 1e9:.2f}; free some space, name another folder, or lower train.keep"
        )


class Checkpointer:
    """Writes checkpoints in the background; at most one at a time.

    All processes call `begin` together. Each has a thread that writes its own files; when `writing` is False on every
    process, all call `settle`, which publishes the folder, or gives it up if a process could not write.
    """

    def __init__(self, run: RunFolder, world: World, keep: int):
        """Remove what killed runs left half-written.

        Args:
            keep: how many checkpoints stay, besides the best.
        """
        self.run, self.world, self.keep = run, world, keep
        self._thread: threading.Thread | None = None
        self._update, self._best, self._error = 0, False, None
        if world.is_main:
            run.checkpoints.mkdir(exist_ok=True)
            for folder in run.checkpoints.glob(".partial-*"):
                shutil.rmtree(folder, ignore_errors=True)
        world.barrier()

    @property
    def writing(self) -> bool:
        """Whether this process still writes."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def _final(self) -> Path:
        return self.run.checkpoints / f"{PREFIX}{self._update:08d}"

    @property
    def _partial(self) -> Path:
        return partial_path(self._final)

    def begin(
        self,
        update: int,
        engines: dict[str, Engine],
        ema: Ema,
        average: Denoiser | None,
        target: Denoiser | None,
        state: dict[str, Any],
        best: bool = False,
    ) -> None:
        """Copy all that resuming after ``update`` needs and start writing it.

        Args:
            average: the averaged student, on the main process; it must not change until `settle`.
            target: the objective's, whole on every process.
            state: plain values to get back from `load_checkpoint`.
            best: mark the checkpoint when it is published.
        """
        assert self._thread is None, "settle first"
        self._update, self._best, self._error = update, best, None
        tensors = {phase: self._share(engine, ema if phase == "student" else None) for phase, engine in engines.items()}
        if target is not None and self.world.is_main:
            tensors["target"] = {
                f"weight/{n}": p.detach().to("cpu", copy=True).contiguous() for n, p in target.named_parameters()
            }
        steps = {phase: engine.adam_steps for phase, engine in engines.items()}
        state = {"update": update, "ema_updates": ema.updates, "adam_steps": steps, **state}
        text = json.dumps(state)  # now: the caller's values go on changing
        self._thread = threading.Thread(target=self._write, args=(tensors, average, text), name="checkpoint")
        self._thread.start()

    def _share(self, engine: Engine, ema: Ema | None) -> dict[str, Tensor]:
        """This process's share of the state, on the CPU: every parameter is written by one process."""
        share: dict[str, Tensor] = {}

        def take(kind: str, gathered: Iterator[tuple[str, Tensor]]) -> None:
            for i, (name, full) in enumerate(gathered):
                if i % self.world.size == self.world.rank:
                    share[f"{kind}/{name}"] = full.to("cpu", torch.float32, copy=True).contiguous()

        for kind in STATE:
            take(kind, engine.gather(kind))
        if ema is not None:
            with ema.swapped():
                take("average", engine.gather("weight"))
        if self.world.is_main:
            kept = set(engine.network.state_dict().keys())
            share |= {
                f"buffer/{name}": buffer.to("cpu", copy=True)
                for name, buffer in engine.network.named_buffers()
                if name in kept
            }
        return share

    def _write(self, tensors: dict[str, dict[str, Tensor]], average: Denoiser | None, state: str) -> None:
        partial = self._partial
        try:
            files = []
            for phase, share in tensors.items():
                (partial / phase).mkdir(parents=True, exist_ok=True)
                files.append(partial / phase / f"rank-{self.world.rank}.safetensors")
                save_file(share, files[-1])
            if self.world.is_main:
                assert average is not None
                average.save(partial / AVERAGE)
                publish(partial / "state.json", state)
                files += files_below(partial / AVERAGE)
                files.append(partial / "state.json")
            sums = {str(p.relative_to(partial)): (p.stat().st_size, _sha256(p)) for p in files}
            for path in files:
                fsync(path)
            publish(partial / f".sums-{self.world.rank}.json", json.dumps(sums))
        except Exception as error:  # the disk is full, the folder has gone, …: training goes on, `settle` says so
            self._error = error

    def settle(self) -> str | None:
        """Publish what has been written, if anything is; on all processes together; waits for this process's thread.

        Returns:
            None, or why the checkpoint could not be written, which is said; the checkpoints before it are untouched.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        reasons = self.world.gather(None if self._error is None else _reason(self._error))
        failed = next(((rank, reason) for rank, reason in enumerate(reasons) if reason is not None), None)
        if failed is None:
            failed = self.world.broadcast(self._publish() if self.world.is_main else None)
        if failed is None:
            return None
        where = f" on process {failed[0]}" if self.world.size > 1 else ""
        problem = f"the checkpoint of update {self._update} could not be written{where} ({failed[1]})"
        if self.world.is_main:
            shutil.rmtree(self._partial, ignore_errors=True)
            warn(f"{problem}; those before it are intact")
        return problem

    def _publish(self) -> tuple[int, str] | None:
        partial, final = self._partial, self._final
        try:
            sums: dict[str, Any] = {}
            for path in sorted(partial.glob(".sums-*.json")):
                sums |= json.loads(path.read_text("utf-8"))
                path.unlink()
            publish(partial / "manifest.json", json.dumps(dict(sorted(sums.items())), indent=1))
            remove(final)  # of a run that was continued from before it
            publish_partial(final)
            if self._best:
                publish(self.run.checkpoints / "best", f"{final.name}\n")
            self._prune()
        except OSError as error:
            return 0, _reason(error)
        return None

    def _prune(self) -> None:
        best = best_checkpoint(self.run)
        for folder in checkpoint_folders(self.run)[: -self.keep]:
            if folder != best:
                doomed = partial_path(folder)
                os.replace(folder, doomed)  # never a half-deleted folder under a whole one's name
                shutil.rmtree(doomed)


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
            if _sha256(path) != digest:
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
def load_checkpoint(
    folder: Path, engines: dict[str, Engine], ema: Ema, world: World, target: Denoiser | None = None
) -> dict[str, Any]:
    """Restore engines, average and target from a checkpoint of any world size and ZeRO stage; returns its state.

    Raises:
        UserError: it is damaged, or of other networks.
    """
    state = world.on_main(lambda: verify_checkpoint(folder))
    try:
        steps, ema.updates = {phase: int(state["adam_steps"][phase]) for phase in engines}, int(state["ema_updates"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {folder} is of another kind of run: its state.json does not fit ({error!r}); resume with the "
            "config that the run was started with"
        ) from error
    for phase, engine in engines.items():
        files = _SafeFiles(folder / phase)
        engine.load(lambda kind, name, files=files: files.get(f"{kind}/{name}"), steps[phase])
        for name, buffer in engine.network.named_buffers():
            if f"buffer/{name}" in files.where:
                buffer.copy_(files.get(f"buffer/{name}"))
        if phase == "student":
            with ema.swapped():
                engine.scatter("weight", lambda name, files=files: files.get(f"average/{name}"))
    if target is not None:
        _SafeFiles(folder / "target").fill({f"weight/{name}": p for name, p in target.named_parameters()})
    return state


@torch.no_grad()
def load_network(folder: Path, phase: str, network: nn.Module) -> None:
    """Fill what a phase trains of ``network``, and its buffers, from a checkpoint that `verify_checkpoint` accepts.

    Raises:
        UserError: it is of another network.
    """
    files = _SafeFiles(folder / phase)
    trained = {f"weight/{name}": p for name, p in network.named_parameters() if p.requires_grad}
    kept = {f"buffer/{name}": buffer for name, buffer in network.named_buffers() if f"buffer/{name}" in files.where}
    files.fill(trained | kept)


class _SafeFiles:
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


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
