"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from distill.evaluation.reports.cells import caption, columns, table_rows
from distill.evaluation.results import Evaluation


def evaluation_markdown(evaluation: Evaluation) -> str:
    """An evaluation's table, its caption below; for model cards."""
    lines = markdown_table(columns(evaluation), table_rows(evaluation), ["model"])
    return "\n".join([*lines, "", caption(evaluation)]) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> list[str]:
    """The lines of a table, columns but those in ``left`` aligned on the right."""
    rules = ["---" if heading in left else "---:" for heading in headings]
    return [f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows)]
