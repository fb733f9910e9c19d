"""An evaluation's table for a terminal."""

from __future__ import annotations

from rich.table import Table

from distill.evaluation.reports.cells import caption, columns, table_rows
from distill.evaluation.reports.frontier import TITLE, frontier_caption, frontier_columns, frontier_rows
from distill.evaluation.reports.other_figures import further_sheets
from distill.evaluation.results import Evaluation
from distill.runtime.tables import add_row, new_table


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """The frontier, where there is one, all rows, and what stands below these."""
    cells = frontier_rows(evaluation)
    first = [frontier_table(evaluation, cells)] if cells else []
    return [*first, evaluation_table(evaluation), *further_tables(evaluation)]


def frontier_table(evaluation: Evaluation, rows: list[list[str]]) -> Table:
    """Perplexity at the entropy of real text, the student's rows in bold."""
    table = new_table(TITLE, frontier_caption(evaluation), frontier_columns(evaluation), ["entropy", "model"])
    before = rows[0][0]
    for cells in rows:
        if before != cells[0]:
            table.add_section()
        before = cells[0]
        add_row(table, cells, bold=cells[1] == "student")
    return table


def evaluation_table(evaluation: Evaluation) -> Table:
    """An evaluation, the student's rows in bold."""
    table = new_table("Quality against steps", caption(evaluation), columns(evaluation), ["model"])
    before = None
    for cells in table_rows(evaluation):
        if before not in (None, cells[0]):
            table.add_section()
        before = cells[0]
        add_row(table, cells, bold=before == "student")
    return table


def further_tables(evaluation: Evaluation) -> list[Table]:
    """What stands below it, see `further_sheets`."""
    tables = []
    for sheet in further_sheets(evaluation):
        tables.append(new_table(sheet.title, sheet.caption, sheet.columns, ["model", "measured", "sampler"]))
        for cells in sheet.rows:
            add_row(tables[-1], cells, bold=cells[0] == "student")
    return tables
