"""`fewstep plan`: a table of memory, ZeRO stage by stage, and one proposal, before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

from distill.config import DistillConfig
from distill.config.precision import settled
from distill.planning.propose import plan
from distill.planning.report import heading, proposal_text, table
from distill.runtime.messages import say
from distill.runtime.progress import console
from distill.runtime.tables import print_table
from teachers.errors import UserError


def plan_command(config: DistillConfig, gpus: int, memory: float, out: Path | None) -> None:
    """Print the table and the proposal; write everything as JSON to ``out``.

    Args:
        memory: of a device, in GB (10⁹ bytes).

    Raises:
        UserError: see `plan`; ``out`` exists or cannot be written.
    """
    if out is not None and out.exists():
        raise UserError(f"{out} exists; name another file with --json")
    assumed = config.train.precision == "auto"
    config = settled(config, faster=lambda: "bfloat16")  # what is planned for is another machine
    with console.status("running the passes without data"):
        found = plan(config, gpus, memory)
    say(heading(found, config, assumed))
    print_table(table(found.options))
    say(proposal_text(found.proposal, found.memory))
    if out is not None:
        try:
            found.save(out)
        except OSError as error:
            raise UserError(f"cannot write {out} ({error.strerror}); name another file with --json") from error
