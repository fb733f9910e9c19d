"""Commands that measure models, and show what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.program import at_home


def evaluate(
    run: Annotated[
        str | None, typer.Argument(help="The folder of a distillation, or a model: a folder or bundled:NAME.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value: settings of the config's evaluate section.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="A student to measure instead of a run: a folder or a name.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A teacher to measure instead of a run: a folder or a name.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="The autoregressive model that scores the text.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Real text to measure beside the samples, or with data.format=prompt_completion prompts."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the results [default: the run's].")] = None,
    task: Annotated[
        str | None, typer.Option(help="A JSONL file of prompts and answers to ask instead; task.checker=numeric, e.g.")
    ] = None,
) -> None:
    """Measure perplexity and entropy, or a task's right answers, at several numbers of steps: a table and a picture."""
    from distill.commands.evaluate import evaluate_command
    from distill.config import is_override

    values = list(overrides or [])
    if run is not None and is_override(run):  # no run given: the first override took its place
        values, run = [run, *values], None
    evaluate_command(at_home(Path(run)) if run is not None else None, student, teacher, judge, data, out, values, task)


def verify(
    folder: Annotated[Path, typer.Argument(help="An exported folder, with its evaluation.json.")],
    judge: Annotated[str | None, typer.Option(help="Where the judge is now [default: where it was].")] = None,
    data: Annotated[str | None, typer.Option(help="Where the real text is now [default: where it was].")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher, to measure its rows too [default: the student's rows alone].")
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(help="A number of steps to measure; may be given several times [default: all].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the new samples [default: another than the evaluation's].")
    ] = None,
    same_seed: Annotated[
        bool, typer.Option("--same-seed", help="The same samples: all figures must be equal, on the same machine.")
    ] = False,
) -> None:
    """Measure an export's own table again; exit code 4 if a figure is not within its interval."""
    from distill.commands.verify import verify_command

    verify_command(folder, judge, data, teacher, steps or (), seed, same_seed)


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG… [key.sub=value …]", help="Configs of distillations, and settings for all of them."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The comparison's folder. The same command continues a comparison that was stopped, or adds seeds."
        ),
    ],
    budget: Annotated[
        str, typer.Option(help="What each run may spend: minutes of training, as 10m, or updates, as 2000u.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many runs of each config, with different seeds.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs go on at once; they share the cores.")] = 1,
) -> None:
    """Distil one teacher by several configs, give each the same budget and measure all in the same way."""
    from distill.commands.compare import compare_command

    compare_command(words, out, budget, seeds, jobs)


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of evaluated runs, which stand side by side, or of a comparison."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page, a file that ends with .html [default: report.html in the run].")
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=0, help="How many prompts teacher and student continue; 0 leaves their texts out.")
    ] = 3,
) -> None:
    """Write one page for a browser: figures, training, and the same prompts answered by teacher and student."""
    from distill.commands.report import report_command

    report_command([at_home(folder) for folder in folders], out, prompts)
