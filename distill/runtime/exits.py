"""How a command ends when it does not end well: exit codes, and the error of a run that can not go on."""

from __future__ import annotations

MISTAKE = 2
"""Exit code of a mistake in the input, found before anything was lost."""
RUN_FAILED = 3
"""Exit code of a run that could not go on: a lost process, a full disk at the end, numbers that are not finite."""
DIFFERS = 4
"""Exit code of a verification that measured something else than is stated."""
PREEMPTED = 75
"""Exit code of a run that a SIGTERM ended after it saved a checkpoint (EX_TEMPFAIL: try again)."""


class RunError(RuntimeError):
    """A run cannot go on, and not for a mistake in its input. One line, with what is left and the remedy."""


def lost_message(rank: int | None = None) -> str:
    """What to tell when another process has gone."""
    who = f"process {rank}" if rank is not None else "another process"
    return f"{who} of this run has gone; start again, a training with --resume: its last checkpoint is intact"


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has gone."""
    signs = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "remote process exited", "nccl")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
