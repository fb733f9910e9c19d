"""Who this process is among the others of a run: what a launcher says in environment variables, read and checked."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from teachers.errors import UserError

WHERE = "see docs/launch.md"
MEANING = {
    "RANK": "this process's number among all processes of the run, from 0",
    "WORLD_SIZE": "how many processes the run has",
    "LOCAL_RANK": "this process's number among those of its node, from 0",
    "MASTER_ADDR": "the host of process 0",
    "MASTER_PORT": "a free port of MASTER_ADDR",
}
"""The variables that launchers set."""


@dataclass(frozen=True)
class Launch:
    """One process of several, or of one that was started as if there were others.

    Attributes:
        local_rank: None where no launcher says it: it is 0 if this process is the only one of its node.
        address, port: where the processes meet.
    """

    rank: int
    size: int
    local_rank: int | None
    address: str
    port: int


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says of this process; None for one without a launcher, which is alone.

    Raises:
        UserError: a variable is missing beside the others, is no number, or is out of range.
    """
    if "RANK" not in environment:
        _check_alone(environment)
        return None
    size = _number(environment, "WORLD_SIZE", 1, 2**31 - 1)
    return Launch(
        _number(environment, "RANK", 0, size - 1, "WORLD_SIZE - 1"),
        size,
        _number(environment, "LOCAL_RANK", 0, size - 1, "WORLD_SIZE - 1") if "LOCAL_RANK" in environment else None,
        _text(environment, "MASTER_ADDR"),
        _number(environment, "MASTER_PORT", 1, 65_535),
    )


def _check_alone(environment: Mapping[str, str]) -> None:
    """Refuse to run alone beside others that a launcher may have started, each of which would take itself for all."""
    for name, alone in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        value = environment.get(name, alone)
        if value != alone:
            raise UserError(
                f"{name} is {value!r} but RANK, {MEANING['RANK']}, is not set; set it too, or unset {name}; {WHERE}"
            )


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise UserError(f"RANK is set but {name}, {MEANING[name]}, is not; set it too, or unset RANK; {WHERE}")
    return value


def _number(environment: Mapping[str, str], name: str, least: int, most: int, called: str = "") -> int:
    value = _text(environment, name)
    if not (value.isascii() and value.isdecimal() and least <= int(value) <= most):
        most_shown = f"{called}, which is {most}" if called else f"{most}"
        raise UserError(
            f"{name} is {value!r}; it must be {MEANING[name]}: a whole number from {least} to {most_shown}; {WHERE}"
        )
    return int(value)


def check_address(launch: Launch, patience: float = 30.0, period: float = 1.0) -> None:
    """Check that ``MASTER_ADDR`` is the name of a host.

    Args:
        patience: seconds during which it may still become one, as a new pod's does.
        period: seconds between tries.

    Raises:
        UserError: it is not.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(launch.address, launch.port)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"MASTER_ADDR is {launch.address!r}, which this machine cannot resolve ({error.strerror}); set it "
                    f"to {MEANING['MASTER_ADDR']}; {WHERE}"
                ) from error
        time.sleep(period)
