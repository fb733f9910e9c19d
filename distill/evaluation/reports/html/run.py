"""What a run's folder holds, read for a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.config import EvaluateConfig, validate
from distill.evaluation.answers import Answers, run_answers
from distill.evaluation.reports.html.page import Report
from distill.evaluation.results import FILE, Evaluation
from distill.evaluation.tasks.results import written_tasks
from distill.runtime.checkpoints import PREFIX
from distill.runtime.cost import Cost
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from teachers.errors import UserError

WATCHED = ("watch_steps", "watch_samples", "entropy_floor", "collapse")


def run_report(folder: Path, prompts: int, world: World) -> Report:
    """What a page shows of a run, or of a folder that holds an evaluation alone.

    Args:
        prompts: that both models answer; 0 leaves their texts out.

    Raises:
        UserError: it is no such folder, nothing of it has been measured, or its models can not be loaded.
    """
    run, evaluation = RunFolder(folder), None
    if (folder / FILE).is_file():
        evaluation = Evaluation.load(folder)
    tasks = tuple(written_tasks(folder))
    if evaluation is None and not tasks:
        run.check_exists()
        raise UserError(f"run {folder} has not been measured; run fewstep evaluate {folder} first")
    name = folder.resolve().name
    if not run.config.is_file():
        return Report(name, evaluation, tasks)
    values = run.started_with()
    return Report(
        name=name,
        evaluation=evaluation,
        tasks=tasks,
        config=run.config.read_text("utf-8"),
        watch=_watch(values),
        lines=run.read_metrics() if run.metrics.is_file() else [],
        best=_best(run),
        answers=_answers(run, prompts, world) if prompts else None,
        cost=Cost.load(folder),
    )


def _watch(values: dict[str, Any]) -> EvaluateConfig:
    """The settings of the watch; a run of an earlier version may hold others that today's config no longer has."""
    evaluate = values.get("evaluate") or {}
    return validate(EvaluateConfig, {key: evaluate[key] for key in WATCHED if key in evaluate})


def _best(run: RunFolder) -> int | None:
    marker = run.checkpoints / "best"
    number = marker.read_text("utf-8").strip().removeprefix(PREFIX) if marker.is_file() else ""
    return int(number) if number.isdecimal() else None


def _answers(run: RunFolder, prompts: int, world: World) -> Answers:
    try:
        return run_answers(run, prompts, world)
    except UserError as error:
        raise UserError(f"{error}; or leave the texts out with --prompts 0") from error
