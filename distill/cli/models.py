"""Commands for one model: write it, read it, let it write text, say what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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


def unpickle(
    model: Annotated[str, typer.Argument(help="A folder, or a hub name with its commit, org/name@<40 hex digits>.")],
    out: Annotated[Path, typer.Option(help="A new folder for the safetensors, the config and the tokenizer.")],
) -> None:
    """Write weights that were released as a pickle as safetensors, without running what the pickle would."""
    from distill.commands.unpickle import unpickle_command

    unpickle_command(model, out)


def generate(
    folder: Annotated[
        str, typer.Argument(help="An exported folder, a run, or a bundled model, such as bundled:words.")
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            help="How many steps to write in; ancestral takes more than there are tokens, too [default: the folder's "
            "own, or fewer for fewer tokens]."
        ),
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
            help="ancestral, daedal, dilated, edit, entropy_bound, factor, joint, planner, random_start, remdm, rgas, "
            "threshold, top_k, or the name of a family for the sampler that it was released with [default: the "
            "folder's own]."
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
