"""Where the time of updates goes, by part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds by part, of the update being made and of all.

    Args:
        settle: called before the clock is read, such as `torch.cuda.synchronize`, where work is only begun.
        entered: told which part begins, and, with "", that it ends.
    """

    def __init__(self, settle: Callable[[], object] = int, entered: Callable[[str], object] = str) -> None:
        self.settle, self.entered = settle, entered
        self.updates: list[dict[str, float]] = []
        self.parts: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens within to a part."""
        self.settle()
        self.entered(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.settle()
            self.entered("")
            self.parts[name] += time.perf_counter() - start

    def wrap(self, owner: object, method: str, name: Callable[[], str]) -> None:
        """Time all calls of a function of a class, an object or a module."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name()):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    def close(self) -> None:
        """End the update."""
        self.updates.append(dict(self.parts))
        self.parts.clear()

    def milliseconds(self, warm_up: int = 0) -> dict[str, float]:
        """Means over all updates but the first ``warm_up``."""
        counted = self.updates[warm_up:]
        names = dict.fromkeys(name for parts in counted for name in parts)
        return {name: 1e3 * sum(parts.get(name, 0.0) for parts in counted) / len(counted) for name in names}
