"""The commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from distill.progress import console
from teachers.errors import UserError

app = typer.Typer(
    name="fewstep",
    help="Distil a diffusion language model that needs hundreds of passes into one that needs eight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Config = Annotated[Path, typer.Argument(help="A YAML config; examples in configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, overriding the config.")]
Run = Annotated[Path | None, typer.Option("--run", help="The run's folder [default: runs/ and the config's name].")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")]


def main() -> None:
    """Run a command; a person's mistake is one line on stderr and exit code 2."""
    # launchers such as deepspeed add --local_rank, which the environment says already
    sys.argv[1:] = [a for a in sys.argv[1:] if not a.startswith(("--local_rank", "--local-rank"))]
    try:
        app()
    except UserError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


@app.command()
def pretrain(config: Config, overrides: Overrides = None, run: Run = None, resume: Resume = False) -> None:
    """Train a masked-diffusion teacher or an autoregressive judge from text."""
    from distill.config import PretrainConfig, load_config
    from distill.pretrain import pretrain as command

    command(load_config(PretrainConfig, config, overrides or []), run or Path("runs") / config.stem, resume)


@app.command()
def distill(config: Config, overrides: Overrides = None, run: Run = None, resume: Resume = False) -> None:
    """Distil a teacher into a few-step student."""
    from distill.config import DistillConfig, load_config
    from distill.distil import distil as command

    command(load_config(DistillConfig, config, overrides or []), run or Path("runs") / config.stem, resume)
