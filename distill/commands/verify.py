"""`fewstep verify`: an export's own table, measured again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.again import measured_again
from distill.evaluation.reports.verification import verification_table
from distill.runtime.exits import DIFFERS
from distill.runtime.messages import say
from distill.runtime.tables import print_table
from distill.runtime.world import start_world


def verify_command(
    folder: Path,
    judge: str | None = None,
    data: str | None = None,
    teacher: str | None = None,
    steps: Sequence[int] = (),
    seed: int | None = None,
    same_seed: bool = False,
) -> None:
    """Measure an export again, see `measured_again`, and print each figure, where it must be and where it was.

    Raises:
        SystemExit: with code `DIFFERS`, if a figure is not where it must be.
    """
    world = start_world()
    verification = measured_again(folder, world, judge, data, teacher, tuple(steps), seed, same_seed)
    if world.is_main:
        say(f"as {verification.command}")
        print_table(verification_table(verification))
        for check in verification.failures:
            say(f"{check.row}: {check.figure} is not what is stated")
    world.finish()
    if not verification.passed:
        raise SystemExit(DIFFERS)
