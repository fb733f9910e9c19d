"""Metrics to a file always, to Weights & Biases when asked for."""

from __future__ import annotations

from typing import Any

from distill.config import TrainConfig
from distill.config.explain import library_reason
from distill.runtime.exits import RunError
from distill.runtime.messages import warn
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from teachers.errors import UserError

ONLINE = ("online", "run", "shared")
"""Modes of wandb in which it talks to its server."""


def check_wandb(project: str | None) -> None:
    """Check that Weights & Biases will take a project's metrics; a person at a terminal is asked to log in.

    Raises:
        UserError: nobody is logged in, the key or the project's name is wrong, or the server cannot be reached.
    """
    if not project:
        return
    import wandb

    try:
        wandb.Settings(project=project)
        if wandb.setup().settings.mode in ONLINE:
            wandb.login()
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"train.wandb is {project!r}, but Weights & Biases cannot be used ({library_reason(error)}); run wandb "
            "login, set WANDB_MODE=offline, or leave train.wandb out"
        ) from error


def start_wandb(project: str, run: RunFolder) -> Any:
    """A wandb run, named as the run's folder is.

    Raises:
        RunError: wandb does not start, though `check_wandb` has found that it can.
    """
    import wandb

    try:
        return wandb.init(project=project, name=run.path.name, dir=str(run.path), resume="allow")
    except (wandb.Error, OSError, ValueError) as error:
        raise RunError(
            f"Weights & Biases does not take the metrics of project {project!r} ({library_reason(error)}); start again "
            "with --resume, and with WANDB_MODE=offline if that lasts"
        ) from error


class Tracker:
    """Writes lines to metrics.jsonl, and to a wandb project if ``train.wandb`` names one (WANDB_MODE=offline works)."""

    def __init__(self, run: RunFolder, world: World, config: TrainConfig):
        self.run, self.main = run, world.is_main
        self.wandb = None
        if config.wandb and self.main:
            self.wandb = start_wandb(config.wandb, run)

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
