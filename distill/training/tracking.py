"""Metrics to a file always, to Weights & Biases when asked for."""

from __future__ import annotations

from typing import Any

from distill.config import TrainConfig
from distill.runtime.messages import warn
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World


class Tracker:
    """Writes lines to metrics.jsonl, and to a wandb project if ``train.wandb`` names one (WANDB_MODE=offline works)."""

    def __init__(self, run: RunFolder, world: World, config: TrainConfig):
        self.run, self.main = run, world.is_main
        self.wandb = None
        if config.wandb and self.main:
            import wandb

            self.wandb = wandb.init(project=config.wandb, name=run.path.name, dir=str(run.path), resume="allow")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.wandb is not None:
            self.wandb.finish()

    def log(self, line: dict[str, Any]) -> None:
        """Record one line; only the main process writes."""
        if not self.main:
            return
        try:
            self.run.append_metrics(line)
        except OSError as error:  # a full disk must not end the training
            warn(f"{self.run.metrics}: {error.strerror}; a line is lost")
        if self.wandb is not None:
            self.wandb.log(line, step=line["update"])
