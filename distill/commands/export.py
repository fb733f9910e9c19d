"""`fewstep export`: a student as a folder that stock transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.reports.markdown import measured
from distill.evaluation.results import FILE, Evaluation
from distill.evaluation.tasks.results import TaskEvaluation, written_tasks
from distill.export import export
from distill.finished import open_student
from distill.runtime.messages import say
from distill.runtime.result_files import json_text
from students.export import precision_of


def export_command(
    run: Path, out: Path, compress: str | None = None, steps: int | None = None, layout: str | None = None
) -> Path:
    """Write the student of a run folder, or a model folder, into the new folder ``out``; see `export`."""
    evaluation = Evaluation.load(run) if (run / FILE).is_file() else None
    tasks = written_tasks(run)
    beside = {task.file: json_text(task) for task in tasks}
    if evaluation is not None:
        beside[FILE] = json_text(evaluation)
    folder = export(open_student(run), out, compress, steps, _measurements(run, evaluation, tasks), layout, beside)
    megabytes = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    say(
        f"exported to {folder}: {megabytes:.1f} MB, {compress or precision_of(folder)}, reloaded and compared; "
        f"next: fewstep generate {folder}",
    )
    return folder


def _measurements(run: Path, evaluation: Evaluation | None, tasks: Sequence[TaskEvaluation]) -> str:
    """The tables of a run's evaluation and of its tasks, or a sentence that there are none."""
    tables = [] if evaluation is None else [measured(evaluation)]
    tables += [task.markdown() for task in tasks]
    if not tables:
        return f"Not measured yet: `fewstep evaluate {run.name}` before the export puts a table here."
    return "\n".join(tables)
