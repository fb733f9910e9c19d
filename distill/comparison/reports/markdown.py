"""A comparison in Markdown."""

from __future__ import annotations

from distill.comparison.reports.cells import caption, columns, table_sections
from distill.comparison.results import Comparison, RunResult
from distill.runtime.tables import markdown_table

RUN_COLUMNS = ["run", "objective", "seed", "weights trained", "updates", "planned s", "train s", "rows s"]


def comparison_markdown(comparison: Comparison) -> str:
    """The table, its caption, the runs, where their settings differ, and those that failed."""
    rows = [cells for section in table_sections(comparison) for cells in section]
    lines = markdown_table(columns(comparison), rows, ["model", "dominated by"])
    lines += ["", caption(comparison), ""]
    lines += markdown_table(RUN_COLUMNS, [run_cells(run) for run in comparison.runs], ["run", "objective"])
    lines += [""] + [
        f"- **{label}**: " + ", ".join(f"`{key}={value}`" for key, value in settings.items())
        for label, settings in comparison.settings.items()
        if settings
    ]
    lines += [f"- {run.name}, **failed**: {run.failed}" for run in comparison.failures]
    return "\n".join(lines).rstrip() + "\n"


def run_cells(run: RunResult) -> list[str]:
    """Cells under `RUN_COLUMNS`."""
    planned, written = ("–" if s is None else f"{s:,.0f}" for s in (run.planned_seconds, run.rows_seconds))
    trained = "–" if run.parameters_trained is None else f"{run.parameters_trained:,}"
    return [
        run.label, run.objective, str(run.seed), trained, f"{run.updates:,}", planned, f"{run.train_seconds:,.0f}",
        written,
    ]  # fmt: skip
