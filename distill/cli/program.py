"""The program that the commands are of: how they are registered, and what becomes of their errors."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer

from distill.runtime.exits import MISTAKE, RUN_FAILED, RunError, is_lost_connection, lost_message
from distill.runtime.messages import say_error
from distill.runtime.threads import settle_environment
from teachers.errors import UserError

# other libraries' bars; ours are rich
for bars in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(bars, "1")

app = typer.Typer(
    name="fewstep",
    help="Distil a diffusion language model that needs hundreds of passes into one that needs eight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes what stands in brackets for markup
)


def main() -> None:
    """Run a command; a person's mistake is one line on stderr and exit code 2."""
    # launchers such as deepspeed add --local_rank, which the environment says already
    sys.argv[1:] = [a for a in sys.argv[1:] if not a.startswith(("--local_rank", "--local-rank"))]
    if sys.argv[1:2] == ["--"]:  # what torchrun passes on of "-m distill -- distill …"
        del sys.argv[1]
    settle_environment(os.environ)
    atexit.register(gc.freeze)  # at its end Python would look for cycles among all that torch has made: a second
    try:
        app()
    except UserError as error:
        fail(str(error), MISTAKE)
    except RunError as error:
        fail(str(error), RUN_FAILED)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        fail(lost_message(), RUN_FAILED)


def fail(message: str, code: int) -> NoReturn:
    """One line on stderr, said once however many processes fail, and an exit code."""
    world = sys.modules.get("distill.runtime.world")  # slow to import, and needed only where others may have failed
    if world is None or world.first_to_say(message):
        say_error(message)
    raise SystemExit(code)


def at_home(value: Any) -> Any:
    """A path of the command line with ~ expanded, as no shell does in ``--run=~/x``; what is no path, as it is."""
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def register(function: Callable[..., None]) -> None:
    """Make a command of a function. Names of models, which are no `Path`, are expanded where they are resolved."""

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        function(**{name: at_home(value) for name, value in arguments.items()})

    app.command()(command)
