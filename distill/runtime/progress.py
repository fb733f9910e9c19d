"""Progress bars with rate and time left; silent where nobody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from distill.runtime.messages import is_silent

Item = TypeVar("Item")
console = Console(stderr=True)


class RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f}/s" if speed else "", style="cyan")


def progress_bar() -> Progress:
    """A bar that shows what, how far, how fast, elapsed and left; drawn only on a terminal and only by rank 0."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        disable=is_silent() or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0",
    )


def track(items: Iterable[Item], what: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Yield ``items`` under a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=total, note=unit)
        for item in items:
            yield item
            bar.advance(task)
