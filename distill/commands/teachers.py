"""`fewstep teachers`: the families of checkpoints in a table, or what one checkpoint is, before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from distill.runtime.tables import add_row, markdown_table, new_table, print_table
from teachers.description import Description, FamilyFacts, families
from teachers.errors import UserError

HEADINGS = ("family", "stands for", "network", "mask id", "shift", "attention", "verified", "served by", "without")
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
CAPTION = (
    "law: log-probabilities within 1e-4 of those of the family's own code. traces: texts of its sampler, token by "
    "token. shift: the network predicts the next position"
)


def teachers_command(
    name: str | None, family: str | None, tokenizer: str | None, as_json: bool, as_markdown: bool
) -> None:
    """Print the table of all families on standard output, or what the checkpoint called ``name`` is.

    Args:
        family, tokenizer: as a config's teacher section says them.
        as_json, as_markdown: instead of a table for a terminal.

    Raises:
        UserError: whatever loading the checkpoint would refuse, but for the weights' values.
    """
    if as_json and as_markdown:
        raise UserError("--json and --markdown are two forms; give one of them")
    if name is not None:
        from distill.models import describe_name

        _print_checkpoint(describe_name(name, family, tokenizer), as_json, as_markdown)
    elif family is not None or tokenizer is not None:
        raise UserError("--family and --tokenizer say something of a checkpoint; give its folder, too")
    else:
        _print_families(families(), as_json, as_markdown)


def _print_families(rows: list[FamilyFacts], as_json: bool, as_markdown: bool) -> None:
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif as_markdown:
        print("\n".join(markdown_table(HEADINGS, [family_cells(row, ", ") for row in rows], HEADINGS)))
    else:
        table = new_table("Families of checkpoints", CAPTION, HEADINGS, HEADINGS)
        for row in rows:
            add_row(table, family_cells(row, "\n"), bold=False)
        print_table(table)


def family_cells(row: FamilyFacts, between: str) -> list[str]:
    """Under `HEADINGS`; "–" where there is nothing.

    Args:
        between: what stands between the items of a list.
    """
    cells = [
        row.name, between.join(row.releases), row.network, row.mask_id, row.shift, row.attention, row.verified,
        between.join(row.served), between.join(row.without),
    ]  # fmt: skip
    return [cell or "–" for cell in cells]


def _print_checkpoint(description: Description, as_json: bool, as_markdown: bool) -> None:
    rows = checkpoint_rows(description)
    if as_json:
        print(json.dumps(asdict(description), indent=2))
    elif as_markdown:
        print("\n".join(markdown_table(("", description.name), rows, ("", description.name))))
    else:
        width = max(len(key) for key, _ in rows)
        print("\n".join([description.name, *(f"  {key:{width}}  {value}" for key, value in rows)]))


def _size(number: int) -> str:
    """Bytes, in the unit that suits them."""
    unit, width = next(((unit, width) for unit, width in UNITS if number >= width), UNITS[-1])
    return f"{number / width:.1f} {unit}"


def checkpoint_rows(description: Description) -> list[Sequence[str]]:
    """What is said of a checkpoint, and the words for it."""
    d = description
    dtypes = ", ".join(f"{numbers:,} in {dtype}" for dtype, numbers in d.dtypes.items())
    entries = "not to be had here" if d.entries is None else f"{d.entries:,} entries"
    attention = d.attention if d.block_size is None else f"blocks of {d.block_size}, {d.block_source}"
    memory = ", ".join(f"{_size(size)} in {precision}" for precision, size in d.memory.items())
    files = "1 file" if d.shards == 1 else f"{d.shards} files"
    return [
        ("family", f"{d.family}: {d.title}"),
        ("network", d.network),
        ("parameters", f"{d.parameters:,}"),
        ("on disk", f"{_size(d.disk)} in {files}: {dtypes}"),
        ("memory", f"{memory}, to load it"),
        ("vocabulary", f"{d.vocabulary:,} rows; tokenizer: {entries}"),
        ("head", "the embedding, tied" if d.tied else "its own weights"),
        ("mask", f"{d.mask_id}: {d.mask_source}"),
        ("shift", "yes: it predicts the next position" if d.shift else "no"),
        ("attention", attention + ("" if d.sliding_window is None else f", a window of {d.sliding_window}")),
        ("positions", d.rotary or "not rotary"),
        ("length", f"{d.length:,} tokens"),
        ("time", "read" if d.time_conditioned else "not read"),
        ("can", ", ".join(d.can) or "nothing"),
        ("can not", ", ".join(d.without) or "–"),
        *(("note", warning) for warning in d.warnings),
    ]
