"""What a comparison measured, as ``comparison.json`` and the files beside its runs hold it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.results import Figures, Frontier, JudgeDescription, Row, Sampling, at_own_temperature, measure
from distill.runtime.cost import Cost
from distill.runtime.result_files import as_json, from_json, load_result, read_result
from teachers.files import publish

FILE = "comparison.json"


@dataclass(frozen=True)
class Command:
    """What was asked for; ``budget`` as `Budget` writes itself."""

    words: list[str]
    budget: str
    seeds: int
    jobs: int


@dataclass(frozen=True)
class Machine:
    """What it ran on; ``threads`` of each run."""

    processor: str
    threads: int
    cores: int | None


@dataclass(frozen=True)
class RunResult:
    """What became of one run.

    Attributes:
        planned_seconds: by the calibration; None for a budget of updates.
        train_seconds: from the start of the first update to the end of the last.
        rows_seconds: of what the teacher wrote beforehand; None for a run that failed.
        parameters_trained: weights that the optimisers moved, of all networks together; None for a run that failed.
        failed: why; None for a run that came through.
        rows, frontier: the student's of an evaluation; none for a run that failed.
        cost: what it spent; None in files of earlier versions.
    """

    label: str
    objective: str
    seed: int
    updates: int
    planned_seconds: float | None
    train_seconds: float
    rows_seconds: float | None
    parameters_trained: int | None
    failed: str | None
    rows: tuple[Row, ...]
    cost: Cost | None = None
    frontier: tuple[Frontier, ...] | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Students of one teacher, each distilled its own way with several seeds, all measured alike.

    Attributes:
        settings: by label, those that are not the same in all configs.
        sampling: of the students; the teacher's sampler is in its rows.
        reference: figures of real text; None where there was none.
        teacher_steps: the many steps of the teacher that are the reference.
        teacher: its rows, by number of steps and temperature.
        frontier: of the teacher; None where there was no real text.
    """

    command: Command
    machine: Machine
    settings: dict[str, dict[str, Any]]
    judge: JudgeDescription
    sampling: Sampling
    reference: Figures | None
    teacher_steps: int
    teacher: tuple[Row, ...]
    runs: tuple[RunResult, ...]
    frontier: tuple[Frontier, ...] | None = None

    def save(self, folder: Path) -> Path:
        """Write ``comparison.json`` into a folder that exists, whole or not at all; returns its path."""
        return publish(folder / FILE, json.dumps(self.as_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Comparison:
        """Read what `save` wrote: the file, or the folder it is in.

        Raises:
            UserError: it is not there, or not whole.
        """
        path = path / FILE if path.is_dir() else path
        return read_result(path, "comparison; run fewstep compare again", cls.from_json)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``rows`` is one a run and a row of it, of a failed run one, whose ``steps`` is null.

        ``frontiers`` are those of the runs.
        """
        values = as_json(self)
        runs = values.pop("runs")
        frontiers = [
            {"label": run["label"], "seed": run["seed"], **one} for run in runs for one in run.pop("frontier", ())
        ]
        values["rows"] = [run | row for run in runs for row in run.pop("rows") or [{"steps": None}]]
        return values | ({"frontiers": frontiers} if frontiers else {})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Comparison:
        """What `as_json` gave.

        Raises:
            ValueError: a value is missing or of another type.
        """
        runs: dict[tuple[str, int], dict[str, Any]] = {}
        for row in values["rows"]:
            run = runs.setdefault((row["label"], row["seed"]), row | {"rows": []})
            if row["steps"] is not None:
                run["rows"].append(row)
        for one in values.get("frontiers", ()):
            runs[one["label"], one["seed"]].setdefault("frontier", []).append(one)
        return from_json(cls, values | {"runs": list(runs.values())})

    @property
    def quality(self) -> str:
        """By which figure students and teacher are compared, see `measure`."""
        return measure([*self.teacher, *(row for run in self.runs for row in run.rows)])

    @property
    def own_teacher(self) -> list[Row]:
        """The teacher's rows at the sampler's own temperature."""
        return at_own_temperature(self.teacher, self.sampling.temperature)

    @property
    def failures(self) -> list[RunResult]:
        """Runs that failed."""
        return [run for run in self.runs if run.failed is not None]


def load_run_result(path: Path) -> RunResult:
    """What became of a run.

    Raises:
        UserError: the file is damaged.
    """
    return load_result(RunResult, path, "result of a run; start the comparison again")
