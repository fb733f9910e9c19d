"""A comparison in Markdown."""

from __future__ import annotations

from distill.comparison.reports import frontier
from distill.comparison.reports.cells import caption, columns, table_sections
from distill.comparison.results import Comparison, RunResult
from distill.runtime.cost import Cost
from distill.runtime.tables import markdown_table

SPENT = ["hours", "teacher passes", "peak GB"]
RUN_COLUMNS = ["run", "objective", "seed", "weights trained", "updates", "planned s", "train s", "rows s", *SPENT]


def comparison_markdown(comparison: Comparison) -> str:
    """The table, its caption, the runs, where their settings differ, and those that failed."""
    rows = [cells for section in table_sections(comparison) for cells in section]
    lines = []
    if matched := frontier.frontier_rows(comparison):
        lines += markdown_table(frontier.COLUMNS, matched, ["entropy", "model"])
        lines += ["", f"{frontier.TITLE}: {frontier.CAPTION}", ""]
    lines += markdown_table(columns(comparison), rows, ["model", "dominated by"])
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
        written, *_spent_cells(run.cost),
    ]  # fmt: skip


def _spent_cells(cost: Cost | None) -> list[str]:
    """Under `SPENT`."""
    if cost is None:
        return ["–"] * len(SPENT)
    held = cost.peak_device_bytes or cost.peak_host_bytes
    return [cost.hours, f"{cost.teacher_passes:,}", "–" if held is None else f"{held / 1e9:.2f}"]
