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

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.runtime.checkpoints import (
    AVERAGE,
    PREFIX,
    TensorFiles,
    best_checkpoint,
    checkpoint_folders,
    sha256,
    verify_checkpoint,
)
from distill.runtime.messages import warn
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from distill.training.engine import STATE, Engine
from students.student import Ema
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.files import files_below, fsync, partial_path, publish, publish_partial, remove


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
            sums = {str(p.relative_to(partial)): (p.stat().st_size, sha256(p)) for p in files}
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
        files = TensorFiles(folder / phase)
        engine.load(lambda kind, name, files=files: files.get(f"{kind}/{name}"), steps[phase])
        for name, buffer in engine.network.named_buffers():
            if f"buffer/{name}" in files.where:
                buffer.copy_(files.get(f"buffer/{name}"))
        if phase == "student":
            with ema.swapped():
                engine.scatter("weight", lambda name, files=files: files.get(f"average/{name}"))
    if target is not None:
        TensorFiles(folder / "target").fill({f"weight/{name}": p for name, p in target.named_parameters()})
    return state


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
