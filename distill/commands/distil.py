"""`fewstep distill`: a frozen teacher in, a few-step student out."""

from __future__ import annotations

from pathlib import Path

from distill.config import DistillConfig
from distill.runtime.messages import say
from distill.training.distillation import in_run_folder


def distil(config: DistillConfig, run_path: str | Path, resume: bool = False, allow_changes: bool = False) -> Path:
    """Train a student, see `in_run_folder`, and say where it is.

    Returns:
        The run folder, for `fewstep evaluate` and `fewstep export`.
    """
    outcome = in_run_folder(config, run_path, resume, allow_changes)
    if outcome.average is not None:  # on the main process
        say(f"student in {run_path}; next: fewstep evaluate {run_path}")
    return Path(run_path)
