"""What ends a run early, or keeps bad numbers out of it: updates that are not finite, the system's wish to end it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from distill.config import TrainConfig
from distill.runtime.exits import RunError
from distill.runtime.messages import warn
from distill.runtime.run_folder import RunFolder, append_line
from distill.runtime.world import World


@contextmanager
def termination(signals: bool = True) -> Iterator[Event]:
    """An event that the first SIGTERM sets, so that a preempted run saves before it goes; a second one kills.

    Within five seconds it is the same one: schedulers signal all processes of a job, and launchers pass theirs on.

    Args:
        signals: whether to listen to any; within another's program, its signals are its own.
    """
    event, first = Event(), 0.0
    if not signals:
        yield event
        return

    def on_sigterm(number: int, frame: object) -> None:
        nonlocal first
        if not event.is_set():
            event.set()
            first = time.monotonic()
        elif time.monotonic() - first > 5:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class Guard:
    """Records updates whose loss or gradient was not finite, and ends the run when there are too many in a row."""

    def __init__(self, run: RunFolder | None, world: World, config: TrainConfig):
        self.run, self.world, self.config, self.in_a_row, self.last = run, world, config, 0, ""

    def record(self, update: int, phase: str, loss: float, norm: float) -> None:
        """Write down what it takes to make the batch again: rows and rollouts follow from seed, update and row."""
        first = update * self.config.batch
        self.last = f"update {update + 1}: {phase} loss {loss:.4g}, gradient norm {norm:.4g}"
        if self.world.is_main:
            warn(f"step skipped at {self.last}")
        if self.world.is_main and self.run is not None:
            append_line(
                self.run.skipped,
                {
                    "update": update + 1,
                    "phase": phase,
                    "loss": str(loss),
                    "grad_norm": str(norm),
                    "seed": self.config.seed,
                    "corpus_rows": [first, first + self.config.batch],
                },
            )

    def check(self, moved: bool) -> None:
        """Count updates in a row that did not move everything.

        Raises:
            RunError: there are ``train.max_skipped``; with what is left and what to do.
        """
        self.in_a_row = 0 if moved else self.in_a_row + 1
        if self.in_a_row < self.config.max_skipped:
            return
        named = again = ""
        if self.run is not None:
            named = f"; their batches are named in {self.run.skipped}, the checkpoints are intact"
            again = ", and start again with --resume --allow-changes"
        raise RunError(
            f"{self.in_a_row} updates in a row were not finite ({self.last}){named}; lower train.student.lr or "
            f"train.critic.lr, or use float32{again}"
        )
