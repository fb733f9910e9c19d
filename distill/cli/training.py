"""Commands that train, and what a training needs before it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="A YAML config, or bundled:NAME, such as bundled:quickstart.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.sub=value: settings that take the place of the config's.")
]
# torchrun's own parser stumbles over --run (it takes it for its --run-path), so --run-dir says the same
Run = Annotated[
    Path | None, typer.Option("--run", "--run-dir", help="The run's folder [default: runs/NAME of the config].")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run from its last checkpoint.")]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="Resume although the config or the data have changed.")
]


def folder_of(config: Path) -> Path:
    """The folder of a run of a config that is given none."""
    from distill.config.bundled import config_file

    return Path("runs") / config_file(config).stem


def pretrain(
    config: Config,
    overrides: Overrides = None,
    run: Run = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Train a masked diffusion teacher, or an autoregressive judge, from text."""
    from distill.commands.pretrain import pretrain as command
    from distill.config import PretrainConfig, load_config

    command(load_config(PretrainConfig, config, overrides or []), run or folder_of(config), resume, allow_changes)


def convert(
    model: Annotated[str, typer.Argument(help="An autoregressive model: a folder, a hub name, or bundled:judge.")],
    overrides: Overrides = None,
    config: Annotated[Path, typer.Option(help="A YAML config of pretraining, such as bundled:convert/block.")] = Path(
        "bundled:convert"
    ),
    run: Run = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Make a diffusion model of an autoregressive one: pretrain, with the model as its start."""
    from distill.commands.pretrain import config_of_conversion
    from distill.commands.pretrain import convert as command

    command(config_of_conversion(model, config, overrides or []), run or folder_of(config), resume, allow_changes)


def distill(
    config: Config,
    overrides: Overrides = None,
    run: Run = None,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Train a student that needs few passes from a teacher that needs many."""
    from distill.commands.distil import distil as command
    from distill.config import DistillConfig, load_config

    command(load_config(DistillConfig, config, overrides or []), run or folder_of(config), resume, allow_changes)


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many processes, each with a device of its own.")] = 1,
    memory: Annotated[float, typer.Option(min=0.001, help="How much memory a device has, in GB (10⁹ bytes).")] = 80.0,
    out: Annotated[
        Path | None, typer.Option("--json", help="A new JSON file to write every term to, in bytes.")
    ] = None,
) -> None:
    """Say how much memory a distillation needs at each ZeRO stage, without loading a weight."""
    from distill.commands.plan import plan_command
    from distill.config import DistillConfig, load_config

    plan_command(load_config(DistillConfig, config, overrides or []), gpus, memory, out)


def oracle(
    kind: Annotated[str, typer.Argument(help="markov, copies, brackets or templates.")],
    out: Annotated[Path, typer.Option(help="A new folder for the source.")],
    length: Annotated[
        int | None, typer.Option(help="How many tokens a row has [default: 32 of markov, or 16].")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens there are, and templates [default: 16 of markov, or 8].")
    ] = None,
    order: Annotated[
        int | None, typer.Option(help="Of markov: how many tokens the next one depends on, 1 or 2 [default: 1].")
    ] = None,
    sharpness: Annotated[
        float | None,
        typer.Option(help="Of markov: 0 makes all tokens equally probable; more makes less entropy [default: 2]."),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Of the others: the share of tokens that are drawn anew [default: 0.1 of templates, or 0.01]."
        ),
    ] = None,
    kinds: Annotated[int | None, typer.Option(help="Of brackets: how many kinds, 1 to 4 [default: 2].")] = None,
    depth: Annotated[int | None, typer.Option(help="Of brackets: how deep they may be nested [default: 4].")] = None,
    stray: Annotated[
        float | None, typer.Option(help="Of brackets: the share of rows that are not balanced [default: 1e-9].")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Of markov: a corpus to count its probabilities from, instead of random ones.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="For --text: the tokenizer to read it with, a folder or a name.")
    ] = None,
    smoothing: Annotated[
        float | None, typer.Option(help="For --text: what is added to the counts of each context [default: 1].")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same source and the same rows.")] = 0,
    rows: Annotated[int, typer.Option(help="How many rows train.jsonl gets.")] = 20_000,
    heldout: Annotated[int, typer.Option(help="How many rows heldout.jsonl gets.")] = 2_048,
) -> None:
    """Write an exact source, a teacher and judge whose probabilities are known, and rows to train a start on."""
    from distill.commands.oracle import oracle_command

    oracle_command(
        kind, out, seed, rows, heldout, text, tokenizer, length=length, tokens=tokens, order=order,
        sharpness=sharpness, noise=noise, kinds=kinds, depth=depth, stray=stray, smoothing=smoothing,
    )  # fmt: skip
