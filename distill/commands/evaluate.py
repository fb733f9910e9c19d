"""`fewstep evaluate`: what to load, and the files that the measurement becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.reports.plots import save_figure
from distill.evaluation.reports.samples import samples_text
from distill.evaluation.reports.terminal import evaluation_table
from distill.evaluation.results import Evaluation
from distill.evaluation.subject import Subject, named_subject, run_subject
from distill.runtime.messages import say
from distill.runtime.run_folder import RunFolder, check_new_folder, new_folder
from distill.runtime.tables import print_table
from distill.runtime.world import start_world
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
) -> Path:
    """Evaluate a run's best checkpoint against its teacher, or any student and teacher against each other.

    Writes ``evaluation.json``, ``evaluation.png`` and ``samples.txt`` into the run, or into the new folder ``out``: the
    main process does, where a launcher started several, which share the sampling and the judging.

    Args:
        run: a distillation's folder; it says which teacher, student, tokenizer, judge and text.
        student, teacher: folders or names, instead of ``run``; one of them may be left out.
        judge, data: override ``evaluate.judge`` and ``evaluate.data``.
        overrides: ``key=value`` of the `EvaluateConfig` section, e.g. ``samples=64``.

    Returns:
        The path of ``evaluation.json``.
    """
    world = start_world()
    words = [o.removeprefix("evaluate.") for o in overrides]
    words += [f"{key}={json.dumps(value)}" for key, value in (("judge", judge), ("data", data)) if value is not None]
    if run is not None and (student or teacher):
        raise UserError(f"run {run} names its own student and teacher; leave out --student and --teacher, or the run")
    target = out or run
    if target is None:
        raise UserError("there is no run to write the evaluation into; name a new folder with --out")
    if out is not None:
        world.on_main(lambda: check_new_folder(out))
    if run is not None:
        subject = run_subject(RunFolder.open(run), words, world)
    else:
        subject = named_subject(student, teacher, words, world)
    subject = subject.on(world.device)
    bench = subject.bench(world)
    if out is not None:
        world.on_main(lambda: new_folder(out))
    evaluation = subject.measure(bench)
    path = world.on_main(lambda: _write(subject, evaluation, target))
    world.finish()
    return path


def _write(subject: Subject, evaluation: Evaluation, folder: Path) -> Path:
    path = evaluation.save(folder)
    save_figure(evaluation.plot(), folder / "evaluation.png")
    publish(folder / "samples.txt", samples_text(subject))
    print_table(evaluation_table(evaluation))
    say(f"written: {path}, evaluation.png and samples.txt")
    return path
