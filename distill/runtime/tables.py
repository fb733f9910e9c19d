"""Tables, for a terminal and in Markdown. What they hold is text, never markup."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDEST = 1000


def new_table(title: str, caption: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table; headings are broken at spaces, and columns but those in ``left`` aligned on the right."""
    words = Text(caption, style="table.caption")
    table = Table(title=title, caption=words, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading.replace(" ", "\n"), justify="left" if heading in left else "right", no_wrap=True)
    return table


def add_row(table: Table, cells: Sequence[str], bold: bool) -> None:
    """Add cells as the text that they are."""
    table.add_row(*(Text(cell) for cell in cells), style="bold" if bold else None)


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table on standard output, or on ``console``, as wide as it is.

    A narrow terminal wraps the lines; cutting figures off would be worse.
    """
    console = console or Console()
    needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def text(table: Table) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=1, color_system=None)
    print_table(table, console)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> list[str]:
    """The lines of a table, columns but those in ``left`` aligned on the right."""
    rules = ["---" if heading in left else "---:" for heading in headings]
    return [f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows)]
