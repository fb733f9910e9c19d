"""The commands."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

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


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command. Its names of models, which are no `Path`, are expanded where they are resolved."""

    @functools.wraps(function)
    def at_home_command(**arguments: Any) -> None:
        function(**{name: at_home(value) for name, value in arguments.items()})

    return app.command()(at_home_command)


@command
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
    from distill.config.bundled import config_file

    command(
        load_config(PretrainConfig, config, overrides or []),
        run or Path("runs") / config_file(config).stem,
        resume,
        allow_changes,
    )


@command
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
    from distill.config.bundled import config_file

    command(
        config_of_conversion(model, config, overrides or []),
        run or Path("runs") / config_file(config).stem,
        resume,
        allow_changes,
    )


@command
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
    from distill.config.bundled import config_file

    command(
        load_config(DistillConfig, config, overrides or []),
        run or Path("runs") / config_file(config).stem,
        resume,
        allow_changes,
    )


@command
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


@command
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


@command
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


@command
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


@command
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


@command
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


@command
def export(
    run: Annotated[Path, typer.Argument(help="A run, or the folder of a model.")],
    out: Annotated[Path, typer.Option(help="A new folder for the checkpoint.")],
    compress: Annotated[
        str | None, typer.Option(help="int8 or int4 write the weights in 8 or 4 bits [default: as the teacher's].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps that the student is meant for [default: 8, or fewer for fewer tokens].")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="own is the format of the teacher's release, stock that of transformers, sdar that of SDAR, for "
            "servers of block attention [default: own, or stock with --compress]."
        ),
    ] = None,
) -> None:
    """Write a checkpoint in the teacher's own format, with tokenizer and model card."""
    from distill.commands.export import export_command

    export_command(run, out, compress, steps, layout)


@command
def unpickle(
    model: Annotated[str, typer.Argument(help="A folder, or a hub name with its commit, org/name@<40 hex digits>.")],
    out: Annotated[Path, typer.Option(help="A new folder for the safetensors, the config and the tokenizer.")],
) -> None:
    """Write weights that were released as a pickle as safetensors, without running what the pickle would."""
    from distill.commands.unpickle import unpickle_command

    unpickle_command(model, out)


@command
def generate(
    folder: Annotated[str, typer.Argument(help="An exported folder, a run, or bundled:teacher.")],
    steps: Annotated[
        int | None,
        typer.Option(help="How many steps to write in [default: the folder's own, or fewer for fewer tokens]."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue; may be given several times.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are a user's, put into the chat template; print the answers alone.")
    ] = False,
    num: Annotated[int, typer.Option(help="How many texts to write, for each prompt.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="How many tokens each text has, with its prompt [default: the folder's own].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same texts [default: a random one].")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ancestral, daedal, dilated, edit, entropy_bound, factor, planner, remdm, rgas, threshold, top_k, or "
            "the name of a family for the sampler that it was released with [default: the folder's own]."
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 makes text less varied than the model's own [default: the sampler's].")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each text, one a line: prompt, text, nfe, log_prob.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the passes first, which takes a while and is for many texts.")
    ] = False,
) -> None:
    """Write text on standard output: one text as it is, several texts under lines such as "--- 1 of 3 ---"."""
    from distill.commands.generate import generate_command

    generate_command(folder, steps, prompt or (), num, length, seed, sampler, temperature, as_json, chat, compiled)


@command
def teachers(
    name: Annotated[
        str | None, typer.Argument(help="A folder, a hub name with its commit, or bundled:teacher.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Its family, where its files do not say it.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Its tokenizer, where it has none of its own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
) -> None:
    """List the families of teachers, or say what one checkpoint is, without reading its weights."""
    from distill.commands.teachers import teachers_command

    teachers_command(name, family, tokenizer, as_json, as_markdown)
