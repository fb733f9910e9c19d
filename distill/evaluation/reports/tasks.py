"""A task's table, for a terminal and in Markdown."""

from __future__ import annotations

from rich.table import Table

from distill.evaluation.reports.cells import LENGTH
from distill.evaluation.tasks.results import Difference, TaskEvaluation, TaskRow
from distill.runtime.tables import add_row, markdown_table, new_table

COLUMNS = [
    "model", "sampler", "steps", "NFE", "TPF", "accuracy %", "95% interval", "to teacher, full passes",
    "to teacher, same passes", "tokens", "ended %", "s a question", "AUP",
]  # fmt: skip
LEFT = ["model", "sampler"]


def task_table(evaluation: TaskEvaluation) -> Table:
    """A task's rows, the student's in bold."""
    table = new_table(f"Task {evaluation.task.name}", task_caption(evaluation), columns(evaluation), LEFT)
    before = None
    for cells in table_rows(evaluation):
        if before not in (None, cells[:2]):
            table.add_section()
        before = cells[:2]
        add_row(table, cells, bold=cells[0] == "student")
    return table


def task_markdown(evaluation: TaskEvaluation) -> str:
    """A task's table, its caption below; for model cards."""
    lines = markdown_table(columns(evaluation), table_rows(evaluation), LEFT)
    return "\n".join([f"Task {evaluation.task.name}:", "", *lines, "", task_caption(evaluation)]) + "\n"


def columns(evaluation: TaskEvaluation) -> list[str]:
    """`COLUMNS`, without what no row has, and with the passes of another network where one made any."""
    absent = set() if any(row.to_full for row in evaluation.rows) else {name for name in COLUMNS if "teacher" in name}
    names = [name for name in COLUMNS if name not in absent]
    if any(row.critic_nfe for row in evaluation.rows):
        names.insert(names.index("NFE") + 1, "critic NFE")
    if _has_length(evaluation):
        names.insert(names.index("NFE") + 1, "length NFE")
    return names


def _has_length(evaluation: TaskEvaluation) -> bool:
    return any(row.length_nfe is not None for row in evaluation.rows)


def table_rows(evaluation: TaskEvaluation) -> list[list[str]]:
    """Cells under `columns`; "–" where nothing applies."""
    aup = {(curve.model, curve.sampler): f"{curve.aup:.1f}" for curve in evaluation.curves}
    rows = []
    for row in evaluation.rows:
        # a curve's figure stands in its first row
        cells = _cells(row) | {"AUP": aup.pop((row.model, row.sampler), "")}
        rows.append([cells[name] for name in columns(evaluation)])
    return rows


def _cells(row: TaskRow) -> dict[str, str]:
    low, high = row.accuracy_ci
    return {
        "model": row.model,
        "sampler": row.sampler,
        "steps": str(row.steps),
        "NFE": f"{row.nfe:.1f}",
        "length NFE": "–" if row.length_nfe is None else f"{row.length_nfe:.1f}",
        "critic NFE": f"{row.critic_nfe:.1f}",
        "TPF": f"{row.tpf:.2f}",
        "accuracy %": f"{100 * row.accuracy:.1f}",
        "95% interval": f"{100 * low:.1f}–{100 * high:.1f}",
        "to teacher, full passes": _difference(row.to_full),
        "to teacher, same passes": _difference(row.to_same),
        "tokens": f"{row.tokens:.1f}",
        "ended %": f"{100 * row.ended:.0f}",
        "s a question": f"{row.seconds:.3g}",
    }


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    low, high = difference.difference_ci
    return f"{100 * difference.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def task_caption(evaluation: TaskEvaluation) -> str:
    """One line: what was asked, how, and what the columns mean."""
    task, asking = evaluation.task, evaluation.asking
    settings = "".join(f", {name} {value!r}" for name, value in task.settings.items())
    sized = f"; {LENGTH}" if _has_length(evaluation) else ""
    return (
        f"{task.questions} questions of {task.file}, checked by {task.checker}{settings}; canvases of {asking.length} "
        f"tokens, {asking.precision}; NFE: mean passes a question{sized}; TPF: tokens up to and including the first "
        "end-of-text token, over all passes; ended: answers with such a token; to teacher: accuracy minus that of the "
        "teacher's best row with the most steps, and with no more passes, paired by question; AUP: d3LLM's, of each "
        "rule's rows; intervals are of 95%"
    )
