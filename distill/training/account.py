"""What a run spends, from its first session on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from distill.runtime.cost import Cost
from distill.runtime.messages import warn
from distill.runtime.resources import spent
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from objectives.objective import Objective
from teachers.denoiser import Denoiser
from teachers.tally import passes_of

Role = Literal["teacher", "student", "critic"]
ROLES: tuple[Role, ...] = ("teacher", "student", "critic")


class Account:
    """Counts from when it is opened: seconds, updates, and passes of the networks that are charged to it.

    Attributes:
        run: where it is kept, so that a run that is killed knows what it spent until then; None for nowhere.
        before: what the run had spent in its earlier sessions.
        updates, tokens: since it was opened, of all processes together.
        lost: updates of earlier sessions that a kill undid.
    """

    def __init__(self, world: World, seed: int):
        self.world, self.seed, self.start = world, seed, time.monotonic()
        self.run: RunFolder | None = None
        self.before: Cost | None = None
        self.updates = self.tokens = self.lost = 0
        self._networks: dict[Role, list[nn.Module]] = {role: [] for role in ROLES}
        self._apart = dict.fromkeys(ROLES, 0)

    def keep_in(self, run: RunFolder, resume: bool) -> None:
        """Go on with what lies in a run's folder, if it is continued, and keep it there from now on.

        Raises:
            UserError: what lies there is not whole.
        """
        self.run = run
        if resume:
            self.before = self.world.on_main(lambda: Cost.load(run.path))

    def resume_at(self, update: int) -> None:
        """The run goes on behind an update; those behind it that were made already are lost."""
        if self.before is not None:
            self.lost = max(0, self.before.updates - self.before.lost_updates - update)

    def charge_teacher(self, teacher: Denoiser) -> None:
        """Count the teacher's passes from now on, whoever used it before."""
        self._networks["teacher"].append(teacher)
        self._apart["teacher"] += passes_of([teacher])

    def charge(self, objective: Objective) -> None:
        """Count all passes of an objective's networks: of the student and its earlier selves, and of the others."""
        for name, network in objective.networks.items():
            self._networks["student" if name in ("student", "target") else "critic"].append(network)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While entered, passes are not the run's: what it has become so far is looked at."""
        before = self._passes()
        yield
        for role, now, then in zip(ROLES, self._passes(), before, strict=True):
            self._apart[role] += now - then

    def add(self, tokens: int) -> None:
        """Count one update, of so many tokens."""
        self.updates += 1
        self.tokens += tokens

    def cost(self) -> Cost:
        """All that was spent so far; collective."""
        seconds = time.monotonic() - self.start
        now = spent(self.world, seconds, self._passes(), self.tokens, (self.seed,), self.updates, self.lost)
        return now if self.before is None else self.before + now

    def save(self) -> None:
        """Keep it in the run's folder, if there is one; collective."""
        if self.run is None:
            return
        cost, path = self.cost(), self.run.path
        if not self.world.is_main:
            return
        try:
            cost.save(path)
        except OSError as error:  # a full disk must not end the training
            warn(f"{path}: {error.strerror}; what the run has spent is not kept")

    def _passes(self) -> Iterable[int]:
        return [passes_of(self._networks[role]) - self._apart[role] for role in ROLES]
