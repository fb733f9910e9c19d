"""A run: one update after another, and once in a while log, watch, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch

from distill.config import OptimizerConfig, TrainConfig
from distill.data.batches import Rows
from distill.runtime.checkpoints import latest_checkpoint
from distill.runtime.exits import RunError
from distill.runtime.progress import progress_bar
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from distill.training.account import Account
from distill.training.checkpoint import Checkpointer, check_space, load_checkpoint
from distill.training.guards import termination
from distill.training.ledger import Ledger
from distill.training.tracking import Tracker
from distill.training.trainer import Trainer, Update
from objectives.objective import Objective
from teachers.denoiser import Denoiser
from teachers.errors import UserError

Watch = Callable[[int, Denoiser | None, dict[str, Any]], tuple[dict[str, float], bool, str | None]]
"""(update, average on the main process, state kept across resumes) → (metrics, whether this is the best so far, why to
stop or None). Called on every process; the answer is the same on each."""


@dataclass
class Outcome:
    """How a training ended.

    Attributes:
        average: the averaged student, on the main process.
        stopped: why it ended early, if it did.
        preempted: a SIGTERM ended it, after a checkpoint; it can be resumed.
    """

    average: Denoiser | None
    stopped: str | None
    preempted: bool


def train(
    objective: Objective,
    optimizers: dict[str, OptimizerConfig],
    corpus: Rows | None,
    config: TrainConfig,
    deepspeed: dict[str, Any] | None,
    run: RunFolder,
    world: World,
    length: int,
    resume: bool = False,
    watch: Watch | None = None,
    watch_every: int | None = None,
    data: dict[str, Any] | None = None,
    signals: bool = True,
    account: Account | None = None,
) -> Outcome:
    """Run ``config.updates`` updates, or what is left of them.

    Args:
        objective, optimizers, corpus, deepspeed, length: see `Trainer`.
        watch: called every ``watch_every`` updates; may stop the run.
        data: identity of the corpus, to refuse a run that continues on other data; None accepts any.
        signals: end with a checkpoint at a SIGTERM.
        account: of what the run spends; None for one that begins here, and counts no teacher's passes.

    Raises:
        UserError: the checkpoint is damaged or of other data, or there is no room for one.
        RunError: too many updates in a row were not finite, or the last checkpoint could not be written.
    """
    trainer = Trainer(objective, optimizers, corpus, config, deepspeed, world, length)
    kept: dict[str, Any] = {"watched": {}, "stopped": None, "skipped": 0, "data": data}
    if account is None:
        account = Account(world, config.seed)
        account.keep_in(run, resume)
    account.charge(objective)
    if resume:
        kept = continued(trainer, run, kept)
        account.resume_at(trainer.done)
    if world.is_main:
        run.drop_metrics_after(trainer.done)
    world.on_main(lambda: check_space(run, trainer.engines, config.keep, trainer.target))

    with termination(signals) as terminated, progress_bar() as bar, Tracker(run, world, config) as tracker:
        ledger = Ledger(trainer, account, length, run, kept["skipped"])
        loop = Loop(trainer, ledger, run, tracker, kept, terminated)
        task = bar.add_task("training", total=config.updates, completed=trainer.done, note="")
        for update in trainer if not kept["stopped"] else ():
            loop.count(update)
            last = update.number == config.updates
            bar.update(task, completed=update.number)
            if last or update.number % config.log_every == 0:
                bar.update(task, note=loop.log())
            best = False
            if watch is not None and watch_every and (last or update.number % watch_every == 0):
                best = loop.watch(watch)
            if loop.save(last, best):
                break
        average = trainer.average()
        loop.finish()
    return Outcome(average, kept["stopped"], loop.preempted)


def continued(trainer: Trainer, run: RunFolder, kept: dict[str, Any]) -> dict[str, Any]:
    """Bring a trainer to the run's newest checkpoint, if there is one; what the loop had kept there.

    Raises:
        UserError: it is damaged, of other networks or of other data.
    """
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return kept
    state = load_checkpoint(checkpoint, trainer.engines, trainer.ema, trainer.world, trainer.target)
    data = kept["data"]
    if data is not None and state.get("data") not in (None, data):
        raise UserError(
            f"the data is {data} but this run was trained on {state['data']}; put the data back, start a new run, "
            "or allow it with --allow-changes"
        )
    trainer.done = state["update"]
    return {key: state.get(key, start) for key, start in kept.items()} | {"data": data}


class Loop:
    """What is done once in a while, and what ends a run before its last update.

    Attributes:
        kept: plain values that a resumed run needs, in every checkpoint.
        preempted: whether any process got a SIGTERM.
    """

    def __init__(
        self,
        trainer: Trainer,
        ledger: Ledger,
        run: RunFolder,
        tracker: Tracker,
        kept: dict[str, Any],
        terminated: Event,
    ):
        self.trainer, self.config, self.world = trainer, trainer.config, trainer.world
        self.ledger, self.tracker, self.kept = ledger, tracker, kept
        self.terminated, self.preempted = terminated, False
        self.checkpointer, self.saved_at = Checkpointer(run, self.world, self.config.keep), time.monotonic()

    def count(self, update: Update) -> None:
        """Add an update to the averages, or to what was skipped.

        Raises:
            RunError: too many in a row were skipped.
        """
        try:
            self.ledger.count(update)
        except RunError:
            self.checkpointer.settle()
            raise

    def log(self) -> str:
        """Write down the averages since the last time; what to show of them."""
        line = self.ledger.line()
        self.tracker.log(line)
        self.ledger.account.save()
        return f"loss {line['student/loss']:.3f}" if "student/loss" in line else "skipped"

    def watch(self, watch: Watch) -> bool:
        """Look at the average; whether it is the best so far."""
        self.checkpointer.settle()  # it may still be writing the average
        average = self.trainer.average()
        with on_device(average, self.world.device), self.ledger.account.apart():
            metrics, best, self.kept["stopped"] = watch(self.trainer.done, average, self.kept["watched"])
        self.tracker.log({"update": self.trainer.done, **metrics})
        return best

    def save(self, last: bool, best: bool) -> bool:
        """Start a checkpoint where one is due, and publish the one before it; whether the run is to end here."""
        minutes, limit = (time.monotonic() - self.saved_at) / 60, self.config.checkpoint_minutes
        late = limit is not None and minutes > limit
        self.preempted, writing, late = self.world.any(self.terminated.is_set(), self.checkpointer.writing, late)
        if not writing:
            self.checkpointer.settle()
        ends = self.preempted or bool(self.kept["stopped"])
        if best or last or late or ends or self.trainer.done % self.config.checkpoint_every == 0:
            self.checkpointer.settle()
            it, self.kept["skipped"] = self.trainer, self.ledger.skipped
            self.checkpointer.begin(it.done, it.engines, it.ema, it.average(), it.target, self.kept, best)
            self.saved_at = time.monotonic()
            self.ledger.account.save()
        return ends

    def finish(self) -> None:
        """Publish the last checkpoint and release the engines.

        Raises:
            RunError: it could not be written.
        """
        problem = self.checkpointer.settle()
        self.ledger.account.save()
        if problem:
            raise RunError(f"{problem}; make room or mend the folder, then start again with --resume")
        self.trainer.destroy()


@contextmanager
def on_device(denoiser: Denoiser | None, device: torch.device) -> Iterator[None]:
    """A denoiser that is kept on the CPU, elsewhere for a while."""
    if denoiser is not None:
        denoiser.to(device)
    yield
    if denoiser is not None:
        denoiser.cpu()
