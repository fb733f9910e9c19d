"""An evaluation in Markdown."""

from __future__ import annotations

from distill.evaluation.reports.cells import caption, columns, table_rows
from distill.evaluation.results import Evaluation
from distill.runtime.tables import markdown_table


def evaluation_markdown(evaluation: Evaluation) -> str:
    """An evaluation's table, its caption below; for model cards."""
    lines = markdown_table(columns(evaluation), table_rows(evaluation), ["model"])
    return "\n".join([*lines, "", caption(evaluation)]) + "\n"
