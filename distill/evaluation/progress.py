"""One bar over a whole evaluation."""

from __future__ import annotations

from rich.progress import Progress
from torch import Tensor

from teachers.cache import Window
from teachers.canvas import Canvas
from teachers.delegating import DelegatingDenoiser
from teachers.denoiser import Denoiser


class Counter:
    """Counts rows that went through a network, here and on the other processes alike."""

    def __init__(self, bar: Progress, total: int, processes: int):
        self.bar, self.done, self.processes = bar, 0, processes
        self.task = bar.add_task("evaluating", total=total, note="")

    def say(self, what: str) -> None:
        """What is going on."""
        self.bar.update(self.task, note=what)

    def advance(self, rows: int) -> None:
        """So many more."""
        self.bar.advance(self.task, rows * self.processes)

    def finish(self, expected: int) -> None:
        """Count a part as done: it was planned before its real number of passes was known."""
        self.done += expected
        self.bar.update(self.task, completed=self.done)


class Watched(DelegatingDenoiser):
    """A denoiser whose passes move the bar."""

    def __init__(self, inner: Denoiser, progress: Counter):
        super().__init__(inner)
        self.progress = progress

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """See `Denoiser.features`."""
        self.progress.advance(len(canvas))
        return self.inner.features(canvas, select)

    def window_features(self, canvas: Canvas, window: Window) -> Tensor:
        """See `Denoiser.window_features`."""
        self.progress.advance(len(window.starts))
        return self.inner.window_features(canvas, window)
