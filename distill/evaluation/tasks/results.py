"""What a task measured, as ``task-NAME.json`` holds it; see `distill.evaluation.results`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.evaluation.results import Interval, Method, ModelDescription, Passes
from distill.runtime.result_files import json_text, load_result
from teachers.files import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIX = "task-"
"""Of the names of a task's files."""


@dataclass(frozen=True)
class TaskDescription:
    """What was asked: ``questions`` of ``file``, whose SHA-256 is ``digest``, and how answers were checked."""

    name: str
    file: str
    digest: str
    questions: int
    checker: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """How models were asked: on canvases of ``length`` tokens, ``batch`` at a time; ``device`` by name."""

    precision: str
    process: str
    length: int
    batch: int
    seed: int
    device: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more accurate a student is than a row of its teacher, on the same questions.

    Attributes:
        sampler, steps, nfe, accuracy: of the teacher's row.
        difference: student − teacher. difference_ci: its 95% interval, paired by question.
    """

    sampler: str
    steps: int
    nfe: float
    accuracy: float
    difference: float
    difference_ci: Interval


@dataclass(frozen=True, kw_only=True)
class TaskRow(Passes):
    """One model with one rule at one number of steps. Passes are of a question; accuracies are from 0 to 1.

    Attributes:
        accuracy_ci: a 95% interval over questions.
        tokens: written in an answer, up to and including its first end-of-text token.
        tpf: tokens a forward pass: all that were written so, over all passes that were made.
        ended: the share of answers with such a token.
        seconds: a question, all of a batch being answered at once.
        to_full: of a student, to the best of its teacher's rows with the most steps.
        to_same: of a student, to the best of its teacher's rows that take no more passes a question than this one.
    """

    accuracy: float
    accuracy_ci: Interval
    tokens: float
    tpf: float
    ended: float
    seconds: float
    to_full: Difference | None = None
    to_same: Difference | None = None


@dataclass(frozen=True)
class Curve:
    """A model's rows with one rule, and the `accuracy_under_parallelism` of these."""

    model: str
    sampler: str
    aup: float


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """Right answers against passes.

    >>> print(TaskEvaluation.load("runs/sums/task-test.json").table())  # doctest: +SKIP

    Attributes:
        models: by ``teacher`` and ``student``, where they came from.
        rows: the teacher's, then the student's, each rule's by number of steps.
        curves: in the order of the rows.
        method: how it was asked; None in files of earlier versions.
    """

    models: dict[str, ModelDescription]
    task: TaskDescription
    asking: Asking
    rows: tuple[TaskRow, ...]
    curves: tuple[Curve, ...]
    method: Method | None = None

    @property
    def file(self) -> str:
        """What `save` calls the file."""
        return f"{PREFIX}{self.task.name}.json"

    def save(self, folder: str | Path) -> Path:
        """Write `file` into a folder, made where there is none, whole or not at all; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return publish(Path(folder) / self.file, json_text(self))

    @classmethod
    def load(cls, path: str | Path) -> TaskEvaluation:
        """Read what `save` wrote.

        Raises:
            UserError: it is not there, or not whole.
        """
        return load_result(cls, Path(path), "evaluation of a task; run fewstep evaluate --task again")

    def table(self) -> str:
        """The figures as text, a line a row, with a caption."""
        from distill.evaluation.reports.tasks import task_table
        from distill.runtime.tables import text

        return text(task_table(self))

    def markdown(self) -> str:
        """`table` in Markdown."""
        from distill.evaluation.reports.tasks import task_markdown

        return task_markdown(self)

    def plot(self) -> Figure:
        """Accuracy against passes a question and against tokens a pass, as a matplotlib figure."""
        from distill.evaluation.reports.task_plot import task_figure

        return task_figure(self)

    def to_html(self, name: str = "Task") -> str:
        """A page for a browser under that name, in one file that needs no other."""
        from distill.evaluation.reports.html.page import Report, report_page

        return report_page([Report(name, tasks=(self,))]).html()


def written_tasks(folder: Path) -> list[TaskEvaluation]:
    """The tasks whose results lie in a folder, by their names.

    Raises:
        UserError: one is not whole.
    """
    return [TaskEvaluation.load(path) for path in sorted(folder.glob(f"{PREFIX}*.json"))]
