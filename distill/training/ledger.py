"""What updates come to: averages for a log line, what they cost, and what was skipped."""

from __future__ import annotations

from typing import Any

from distill.runtime.run_folder import RunFolder
from distill.training.account import Account
from distill.training.guards import Guard
from distill.training.meter import Meter
from distill.training.trainer import Trainer, Update


class Ledger:
    """Counts the updates of a trainer.

    Attributes:
        account: which they are charged to.
        skipped: updates of a phase that did not move its network.
    """

    def __init__(
        self, trainer: Trainer, account: Account, length: int, run: RunFolder | None = None, skipped: int = 0
    ):  # fmt: skip
        """Start.

        Args:
            length: tokens a row, for the throughput.
            run: where the batches of skipped updates are named; None for nowhere.
            skipped: before this.
        """
        self.trainer, self.account = trainer, account
        self.tokens, self.skipped = trainer.config.batch * length, skipped
        self.meter, self.guard = Meter(trainer.world), Guard(run, trainer.world, trainer.config)

    def count(self, update: Update) -> None:
        """Add an update.

        Raises:
            RunError: too many in a row were skipped.
        """
        self.meter.updates += 1
        self.meter.tokens += self.tokens
        self.account.add(self.tokens)
        for phase, step in update.steps:
            if step.moved:
                self.meter.add(phase, step.loss, step.norm, step.outs)
            else:
                self.guard.record(update.number - 1, phase, step.loss, step.norm)
                self.skipped += 1
        self.guard.check(update.moved)

    def line(self) -> dict[str, Any]:
        """The averages since the last line, over all processes."""
        rates = {f"{phase}/lr": rate for phase, rate in self.trainer.learning_rates().items()}
        return {"update": self.trainer.done, **self.meter.read(), **rates, "skipped": self.skipped}
