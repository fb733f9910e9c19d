"""A comparison's table for a terminal."""

from __future__ import annotations

from rich.table import Table

from distill.comparison.reports import frontier
from distill.comparison.reports.cells import caption, columns, table_sections
from distill.comparison.results import Comparison
from distill.runtime.tables import add_row, new_table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Who is better at the entropy of real text, where that was measured, and all figures."""
    rows = frontier.frontier_rows(comparison)
    if not rows:
        return [comparison_table(comparison)]
    table = new_table(frontier.TITLE, frontier.CAPTION, frontier.COLUMNS, ["entropy", "model"])
    for cells in rows:
        add_row(table, cells, bold=cells[2] != "teacher")
    return [table, comparison_table(comparison)]


def comparison_table(comparison: Comparison) -> Table:
    """Students by steps, those that nobody dominates in bold."""
    table = new_table("Students by steps", caption(comparison), columns(comparison), ["model", "dominated by"])
    for section in table_sections(comparison):
        table.add_section()
        for cells in section:
            add_row(table, cells, bold=cells[2] != "–" and not cells[-1])
    return table
