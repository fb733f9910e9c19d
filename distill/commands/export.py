"""`fewstep export`: a student as a folder that stock transformers loads."""

from __future__ import annotations

from pathlib import Path

from distill.evaluation.results import FILE, Evaluation
from distill.evaluation.tasks.results import written_tasks
from distill.export import export
from distill.finished import open_student
from distill.runtime.messages import say
from students.export import precision_of


def export_command(
    run: Path, out: Path, compress: str | None = None, steps: int | None = None, layout: str | None = None
) -> Path:
    """Write the student of a run folder, or a model folder, into the new folder ``out``; see `export`."""
    folder = export(open_student(run), out, compress, steps, _measurements(run), layout)
    megabytes = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    say(
        f"exported to {folder}: {megabytes:.1f} MB, {compress or precision_of(folder)}, reloaded and compared; "
        f"next: fewstep generate {folder}",
    )
    return folder


def _measurements(run: Path) -> str:
    """The table of RUN/evaluation.json and those of its tasks, or a sentence that there are none."""
    path = run / FILE
    tables = [Evaluation.load(path).markdown()] if path.is_file() else []
    tables += [task.markdown() for task in written_tasks(run)]
    if not tables:
        return f"Not measured yet: `fewstep evaluate {run.name}` before the export puts a table here."
    return "\n".join(tables)
