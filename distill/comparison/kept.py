"""What the runs of a comparison keep in their folders, beside what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.comparison.results import Comparison
from distill.evaluation.answers import Answers, kept_answers
from distill.evaluation.reports.html.training import Lines
from distill.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Kept:
    """What is kept of one run: the lines of metrics.jsonl, and texts if `fewstep report` has written any."""

    lines: Lines
    answers: Answers | None = None


def run_folder(out: Path, label: str, seed: int) -> Path:
    """Where a comparison in the folder ``out`` keeps a run."""
    return out / "runs" / label / f"seed-{seed}"


def kept_runs(comparison: Comparison, out: Path) -> dict[str, Kept]:
    """By its name, the first run of each label that came through, of those whose folder is still there.

    Raises:
        UserError: a file of theirs is damaged.
    """
    first = {run.label: run for run in reversed(comparison.runs) if run.failed is None}
    kept = {}
    for label in comparison.settings:
        if label not in first:
            continue
        run = RunFolder(run_folder(out, label, first[label].seed))
        if run.metrics.is_file():
            kept[first[label].name] = Kept(run.read_metrics(), kept_answers(run))
    return kept
