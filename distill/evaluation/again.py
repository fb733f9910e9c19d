"""An export's own evaluation, made again: with the same settings, on other samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.config import DataConfig, validate
from distill.evaluation.reports.verification import card_checks
from distill.evaluation.results import FILE, Evaluation, Method
from distill.evaluation.subject import Subject, named_subject
from distill.evaluation.tasks.results import TaskEvaluation, written_tasks
from distill.evaluation.verification import Verification, checks_of, row_label, task_checks, unverified
from distill.finished import is_model
from distill.runtime.world import World
from teachers.errors import UserError
from teachers.source import parse_source


def measured_again(
    folder: str | Path,
    world: World,
    judge: str | None = None,
    data: str | None = None,
    teacher: str | None = None,
    steps: tuple[int, ...] = (),
    seed: int | None = None,
    same_seed: bool = False,
) -> Verification:
    """Measure an export as its evaluation says that it was, ask its tasks again, and compare; on every process.

    Args:
        folder: an export with its ``evaluation.json``, or its tasks' files, or both.
        judge, data: where these are now; by default where they were.
        teacher: measured as well; by default its rows are left out.
        steps: those of the table to measure, without the teacher's many; by default all.
        seed: of the samples; by default another one than the evaluation's.
        same_seed: the evaluation's own, so that all figures must be equal. They are on the same machine and versions.

    Raises:
        UserError: no evaluation, one that does not say how it was made, other steps than it has, or a judge, data or
            questions that are not there.
    """
    if seed is not None and same_seed:
        raise UserError(f"seed {seed} and the evaluation's own are two; leave out --seed or --same-seed")
    root = Path(parse_source(str(folder)).path)
    tasks = written_tasks(root)
    if tasks and not (root / FILE).is_file():
        command = "" if tasks[0].method is None else tasks[0].method.command
        verification = Verification(
            str(folder), command, (), (), (), _seed(tasks[0].asking.seed, seed, same_seed), None
        )
    else:
        verification = _measured_again(str(folder), root, world, judge, data, teacher, steps, seed, same_seed)
    for task in tasks:
        again = _asked_again(task, str(folder), world, teacher, steps, _seed(task.asking.seed, seed, same_seed))
        checks = (*verification.checks, *task_checks(task, again, same_draws=same_seed))
        verification = replace(verification, checks=checks, tasks=(*verification.tasks, again))
    return verification


def _measured_again(
    folder: str,
    root: Path,
    world: World,
    judge: str | None,
    data: str | None,
    teacher: str | None,
    steps: tuple[int, ...],
    seed: int | None,
    same_seed: bool,
) -> Verification:
    """The evaluation, see `measured_again`; ``root`` is where the export is."""
    stated, method = _stated(root)
    known = method.settings["steps"]
    if unknown := sorted(set(steps) - set(known)):
        raise UserError(
            f"steps {unknown[0]} has no row in the evaluation of {folder}; it has {', '.join(map(str, known))}"
        )
    seed = _seed(stated.sampling.seed, seed, same_seed)
    judge = judge or str(method.settings["judge"])
    if not is_model(judge):
        raise UserError(f"judge {judge!r}, which {folder} was measured with, is not here; name its folder with --judge")
    fewer = {"steps": sorted(steps), "teacher_steps": max(steps)} if steps else {}
    words = [f"{key}={json.dumps(value)}" for key, value in {**method.settings, "judge": judge, **fewer}.items()]
    subject = _with_text(named_subject(folder, teacher, words, world), method, data, folder)
    measured = _with_seed(subject.on(world.device), seed, world)
    left_out = _left_out(stated, measured)
    card = root / "README.md"
    shown = card_checks(card.read_text("utf-8"), stated) if card.is_file() else []
    checks = (*checks_of(stated, measured, same_draws=same_seed), *shown)
    apart = () if same_seed else unverified(stated, measured)
    return Verification(folder, method.command, checks, left_out, apart, seed, measured)


def _asked_again(
    task: TaskEvaluation, folder: str, world: World, teacher: str | None, steps: tuple[int, ...], seed: int
) -> TaskEvaluation:
    """A task's questions asked again in the same way, with other noise."""
    method = task.method
    if method is None:
        raise UserError(
            f"{task.file} in {folder} is of an earlier version and does not say how it was asked; run fewstep evaluate "
            "--task and fewstep export again"
        )
    here = sorted(set(steps) & set(method.settings["steps"])) or method.settings["steps"]
    settings = {**method.settings, "steps": here, "seed": seed}
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    subject = named_subject(folder, teacher, words, world).on(world.device)
    bench = subject.task_bench(world)
    if bench.task.digest != task.task.digest:
        raise UserError(f"{task.task.file} is not the file of questions that {folder} was asked; put that one back")
    return subject.ask(bench)[0]


def _seed(stated: int, given: int | None, same: bool) -> int:
    """Of the new samples: the one that is given, or another than the stated one unless it is to be the same."""
    return given if given is not None else stated + (0 if same else 1)


def _left_out(stated: Evaluation, measured: Evaluation) -> tuple[str, ...]:
    """What was not measured again: all of a model, or rows."""
    there = {row_label(row) for row in measured.rows}
    models = {row.model for row in measured.rows}
    names = (
        row_label(row) if row.model in models else f"the {row.model}'s rows"
        for row in stated.rows
        if row_label(row) not in there
    )  # fmt: skip
    return tuple(dict.fromkeys(names))


def _stated(folder: Path) -> tuple[Evaluation, Method]:
    if not (folder / FILE).is_file():
        raise UserError(
            f"{folder} has no {FILE}, so there is no table to verify; run fewstep evaluate before fewstep export"
        )
    stated = Evaluation.load(folder)
    if stated.method is None:
        raise UserError(
            f"{folder / FILE} is of an earlier version and does not say how it was measured; run fewstep evaluate and "
            "fewstep export again"
        )
    return stated, stated.method


def _with_text(subject: Subject, method: Method, data: str | None, folder: str) -> Subject:
    """With the real text that the evaluation had, if it is here; prompts must be."""
    if method.text is None:
        return subject
    text: dict[str, Any] = dict(method.text)
    if data is not None:
        text |= {"path": data, "heldout": data}
    config = validate(DataConfig, text)
    name = config.heldout or config.path
    if not _is_here(name):
        if config.prompted:
            raise UserError(f"data {name!r}, whose prompts {folder} was measured on, is not here; name it with --data")
        return subject
    return replace(subject, text=config)


def _with_seed(subject: Subject, seed: int, world: World) -> Evaluation:
    """The evaluation on the same real text, and after the same prompts, with other noise."""
    bench = subject.bench(world)
    config = subject.config.model_copy(update={"seed": seed})
    return replace(subject, config=config).measure(replace(bench, config=config))


def _is_here(name: str) -> bool:
    source = parse_source(name, kind="dataset")
    return source.revision is not None or Path(source.path).exists()
