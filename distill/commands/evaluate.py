"""`fewstep evaluate`: what to load, and the files that the measurement becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.reports.plots import save_figure
from distill.evaluation.reports.samples import samples_text
from distill.evaluation.reports.tasks import task_table
from distill.evaluation.reports.terminal import evaluation_tables
from distill.evaluation.results import Evaluation
from distill.evaluation.subject import Subject, model_subject, named_subject, run_subject
from distill.evaluation.tasks.measure import Answers
from distill.evaluation.tasks.results import TaskEvaluation
from distill.finished import is_model
from distill.runtime.compilation import say_compile_time
from distill.runtime.messages import say
from distill.runtime.run_folder import RunFolder, check_new_folder, new_folder
from distill.runtime.tables import print_table
from distill.runtime.world import World, start_world
from teachers.errors import UserError
from teachers.files import publish


def evaluate_command(
    run: Path | None,
    student: str | None = None,
    teacher: str | None = None,
    judge: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    task: str | None = None,
) -> Path:
    """Evaluate a run's best checkpoint against its teacher, or any student and teacher against each other.

    Writes ``evaluation.json``, ``evaluation.png`` and ``samples.txt`` into the run, or into the new folder ``out``;
    with a task, `TaskEvaluation.file` with a picture and all answers instead. The main process does, where a launcher
    started several, which share the work.

    Args:
        run: a distillation's folder; it says which teacher, student, tokenizer, judge and text. Or a single model.
        student, teacher: folders or names, instead of ``run``; one of them may be left out.
        judge, data, task: override ``evaluate.judge``, ``evaluate.data`` and ``evaluate.task.path``.
        overrides: ``key=value`` of the `EvaluateConfig` section, e.g. ``samples=64``.

    Returns:
        The path of ``evaluation.json``, or of the task's.
    """
    world = start_world()
    given = (("judge", judge), ("data", data), ("task.path", task))
    words = [o.removeprefix("evaluate.") for o in overrides]
    words += [f"{key}={json.dumps(value)}" for key, value in given if value is not None]
    if run is not None and (student or teacher):
        raise UserError(f"run {run} names its own student and teacher; leave out --student and --teacher, or the run")
    if task is not None and (judge or data):
        raise UserError(
            "a task has answers, and neither judges nor reads text; leave out --judge and --data, or --task"
        )
    single = run is not None and is_model(str(run))
    target = out or (None if single else run)
    if target is None:
        raise UserError("there is no run to write the evaluation into; name a new folder with --out")
    if out is not None:
        world.on_main(lambda: check_new_folder(out))
    if single:
        subject = model_subject(str(run), words, world)
    elif run is not None:
        subject = run_subject(RunFolder.open(run), words, world)
    else:
        subject = named_subject(student, teacher, words, world)
    measure = _text if subject.config.task is None else _task
    path = measure(subject.on(world.device), target, out is not None, world)
    if world.is_main:
        say_compile_time()
    world.finish()
    return path


def _text(subject: Subject, target: Path, is_new: bool, world: World) -> Path:
    bench = subject.bench(world)
    if is_new:
        world.on_main(lambda: new_folder(target))
    evaluation = subject.measure(bench, lambda known: world.on_main(lambda: _show(known, target)))
    return world.on_main(lambda: _write(subject, evaluation, target))


def _show(known: Evaluation, folder: Path) -> None:
    known.save(folder)
    _print(known)
    say("rows that take longer follow")


def _print(evaluation: Evaluation) -> None:
    for table in evaluation_tables(evaluation):
        print_table(table)


def _write(subject: Subject, evaluation: Evaluation, folder: Path) -> Path:
    path = evaluation.save(folder)
    save_figure(evaluation.plot(), folder / "evaluation.png")
    publish(folder / "samples.txt", samples_text(subject))
    _print(evaluation)
    say(f"written: {path}, evaluation.png and samples.txt")
    return path


def _task(subject: Subject, target: Path, is_new: bool, world: World) -> Path:
    bench = subject.task_bench(world)
    if is_new:
        world.on_main(lambda: new_folder(target))
    evaluation, answers = subject.ask(bench)
    return world.on_main(lambda: _write_task(evaluation, answers, target))


def _write_task(evaluation: TaskEvaluation, answers: Sequence[Answers], folder: Path) -> Path:
    path = evaluation.save(folder)
    picture, lines = path.with_suffix(".png"), path.with_suffix(".jsonl")
    save_figure(evaluation.plot(), picture)
    publish(lines, "".join(json.dumps(line) + "\n" for part in answers for line in part.lines()))
    print_table(task_table(evaluation))
    say(f"written: {path}, {picture.name} and {lines.name}, with all answers")
    return path
