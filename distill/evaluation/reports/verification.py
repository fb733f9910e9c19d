"""What was measured again, as a table for a terminal."""

from __future__ import annotations

from rich.table import Table

from distill.evaluation.reports.cells import columns, perplexity_text, table_rows
from distill.evaluation.results import Evaluation
from distill.evaluation.verification import LEVEL, Check, Verification
from distill.runtime.tables import add_row, new_table

HEADINGS = ["row", "figure", "stated", "interval", "measured", "within"]


def verification_table(verification: Verification) -> Table:
    """A line a figure, those outside their intervals in bold."""
    table = new_table("Stated and measured again", caption(verification), HEADINGS, ["row", "figure", "within"])
    before = None
    for check in verification.checks:
        if before not in (None, check.row):
            table.add_section()
        before = check.row
        add_row(table, _cells(check), bold=not check.within)
    return table


def caption(verification: Verification) -> str:
    """What was compared, and what was not."""
    outside, measured = len(verification.failures), verification.measured
    sizes = [] if measured is None else [f"{measured.sampling.size} a row"]
    sizes += [f"{task.task.questions} questions of {task.task.name}" for task in verification.tasks]
    said = f"{outside} outside" if outside else "all within"
    left = f"; not measured: {'; '.join(verification.left_out)}" if verification.left_out else ""
    names = ", ".join(name.replace("_", " ") for name in verification.unverified)
    left += f"; without an interval, so that only --same-seed verifies them: {names}" if names else ""
    return (
        f"{len(verification.checks)} figures, {said}; {', '.join(sizes)}, seed {verification.seed}; "
        f"interval: of a second measurement, for all figures together ({LEVEL:.0%}, Bonferroni){left}"
    )


def _cells(check: Check) -> list[str]:
    stated, measured = (_text(check.figure, value) for value in (check.stated, check.measured))
    interval = "–"
    if check.interval is not None:
        low, high = (_text(check.figure, end) for end in check.interval)
        interval = "equal" if check.interval[0] == check.interval[1] else f"{low}–{high}"
    return [check.row, check.figure.replace("_", " "), stated, interval, measured, "yes" if check.within else "NO"]


def _text(figure: str, value: float | None) -> str:
    if value is None:
        return "–"
    if figure == "judge_perplexity":
        return perplexity_text(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def card_checks(card: str, evaluation: Evaluation) -> list[Check]:
    """Compare the table on a model card with the evaluation that it shows: the cells that differ.

    A card of another version may have other columns or rows; only cells under the same heading are compared, and no
    table with another number of rows.
    """
    headings, rows = columns(evaluation), table_rows(evaluation)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    start = next((n for n, cells in enumerate(lines) if cells[0] == headings[0] and "judge PPL" in cells), None)
    if start is None:
        return []
    shown = [dict(zip(lines[start], cells, strict=False)) for cells in lines[start + 2 : start + 2 + len(rows)]]
    return [
        Check(f"README.md, {row[0]}, {row[1]} steps", heading, _number(there[heading]), _number(cell), None)
        for there, row in zip(shown, rows, strict=False)
        for heading, cell in zip(headings, row, strict=True)
        if there.get(heading, cell) != cell
    ]


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None
