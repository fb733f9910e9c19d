"""An evaluation in Markdown."""

from __future__ import annotations

from distill.evaluation.reports.cells import caption, columns, table_rows
from distill.evaluation.reports.frontier import TITLE, frontier_caption, frontier_columns, frontier_rows
from distill.evaluation.reports.other_figures import further_sheets
from distill.evaluation.results import Evaluation
from distill.runtime.tables import markdown_table


def evaluation_markdown(evaluation: Evaluation) -> str:
    """An evaluation's tables, each with its caption below, the frontier first; for model cards."""
    lines = []
    if cells := frontier_rows(evaluation):
        lines += markdown_table(frontier_columns(evaluation), cells, ["entropy", "model"])
        lines += ["", f"{TITLE}: {frontier_caption(evaluation)}", ""]
    lines += [*markdown_table(columns(evaluation), table_rows(evaluation), ["model"]), "", caption(evaluation)]
    for sheet in further_sheets(evaluation):
        table = markdown_table(sheet.columns, sheet.rows, ["model", "measured", "sampler"])
        lines += ["", f"{sheet.title}:", "", *table, "", sheet.caption]
    return "\n".join(lines) + "\n"


def measured(evaluation: Evaluation) -> str:
    """What a model card says of an evaluation: its table, and how to measure it again."""
    if evaluation.method is None:
        return evaluation_markdown(evaluation)
    again = "Measured with the command below; `fewstep verify FOLDER` measures again and compares."
    return f"{evaluation_markdown(evaluation)}\n{again}\n\n```sh\n{evaluation.method.command}\n```\n"
