"""`fewstep report`: a page on runs, or on a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.report import report
from distill.runtime.messages import say


def report_command(folders: Sequence[Path], out: Path | None = None, prompts: int = 3) -> Path:
    """Write the page, and say where it is; see `report`."""
    path = report(folders, out, prompts)
    say(f"written: {path}; open it in a browser")
    return path
