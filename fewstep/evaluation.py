"""Measuring: quality against step count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from transformers import PreTrainedTokenizerBase

import distill.report
from distill.config import DataConfig, EvaluateConfig
from distill.config.overrides import validate
from distill.config.precision import faster_precision
from distill.evaluation.again import measured_again
from distill.evaluation.reference import heldout_text
from distill.evaluation.results import Evaluation
from distill.evaluation.subject import Subject
from distill.evaluation.tasks.results import TaskEvaluation
from distill.evaluation.tasks.task import check_task
from distill.evaluation.verification import Verification
from distill.runtime.world import World, local_device
from fewstep.models import Model
from fewstep.quiet import quiet
from students.samplers import Ancestral, Sampler
from teachers.errors import UserError
from teachers.process import MaskedProcess


@overload
def evaluate(
    student: Model | None,
    teacher: Model | None = None,
    judge: str | Path = "bundled:judge",
    steps: Sequence[int] | None = None,
    samples: int | None = None,
    data: str | Path | DataConfig | None = None,
    length: int | None = None,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    task: None = None,
    **settings: Any,
) -> Evaluation: ...


@overload
def evaluate(
    student: Model | None, teacher: Model | None = None, *, task: str | Path | Mapping[str, Any], **settings: Any
) -> TaskEvaluation: ...


def evaluate(
    student: Model | None,
    teacher: Model | None = None,
    judge: str | Path = "bundled:judge",
    steps: Sequence[int] | None = None,
    samples: int | None = None,
    data: str | Path | DataConfig | None = None,
    length: int | None = None,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    task: str | Path | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Evaluation | TaskEvaluation:
    """Measure perplexity and entropy, or a task's right answers, against step count, on this process.

    >>> evaluation = fewstep.evaluate(student, teacher, steps=[4, 8], samples=256)  # doctest: +SKIP
    >>> print(evaluation.table())  # doctest: +SKIP
    >>> evaluation.plot().savefig("evaluation.png")  # doctest: +SKIP
    >>> evaluation.save("results")  # doctest: +SKIP
    >>> fewstep.evaluate(student, steps=[4], task={"path": "test.jsonl", "checker": "numeric"})  # doctest: +SKIP

    Args:
        student, teacher: one may be None.
        judge: the autoregressive model that scores the text.
        steps: of the student and of the teacher, which is also measured at its many, ``teacher_steps``.
        samples: texts a row of the table.
        data: held-out real text, for reference; or a ``fewstep.Data`` of prompts to write after, all of its rows
            unless it names its ``heldout``.
        length: tokens of a text, prompt included; by default what the student was made for.
        sampler: what the student is sampled with; by default what it was made for. A teacher alone: ancestral.
        task: a file of prompts and answers, or the keys of ``evaluate.task``, to ask its questions instead: nothing is
            judged then, and the result is a `TaskEvaluation`.
        settings: other keys of a config's ``evaluate`` section, such as teacher_steps, batch, retokenize.

    Raises:
        UserError: a value out of range, or models that the judge can not be asked about.
    """
    models = {name: model for name, model in (("teacher", teacher), ("student", student)) if model is not None}
    first = student or teacher
    if first is None:
        raise UserError("there is nothing to evaluate; give a student, a teacher or both")
    for model in models.values():
        model.denoiser.spec.check_mask()
    own = Ancestral() if student is None else student.finished.sampler
    rule = own if sampler is None else sampler
    values = {
        "judge": str(judge),
        "sampler": rule if isinstance(rule, str) else rule.model_dump(mode="json"),
        "length": first.finished.canvas_length if length is None else length,
        "seed": seed,
        "steps": None if steps is None else list(steps),
        "samples": samples,
        "data": str(data) if isinstance(data, str | Path) else None,
    }
    if task is not None:
        values["task"] = dict(task) if isinstance(task, Mapping) else {"path": str(task)}
    config = validate(EvaluateConfig, {k: v for k, v in values.items() if v is not None} | settings)
    check_task(config)
    if config.precision == "auto":
        config = config.model_copy(update={"precision": faster_precision()})
    device = local_device(0)
    critic = None if student is None else student.finished.critic(config.sampler, getattr(torch, config.precision))
    subject = Subject(
        config=config,
        models={name: model.denoiser for name, model in models.items()},
        names={name: model.name for name, model in models.items()},
        tokenizer=first.tokenizer,
        process=MaskedProcess(first.finished.schedule),
        text=_text(data, values["length"], first.tokenizer),
        critic=critic,
        training=None if student is None else student.finished.training,
    ).on(device)
    world = World(0, 1, device)
    with quiet():
        if config.task is not None:
            return subject.ask(subject.task_bench(world))[0]
        return subject.measure(subject.bench(world))


def report(*folders: str | Path, out: str | Path | None = None, prompts: int = 3) -> Path:
    """Write a page for a browser on runs that were evaluated, side by side, or on one comparison.

    >>> fewstep.report("runs/quickstart")  # doctest: +SKIP
    PosixPath('runs/quickstart/report.html')

    Args:
        folders: of runs, of evaluations, or of one comparison.
        out: the file, whose name ends with .html; by default report.html in the only folder.
        prompts: that a run's teacher and student continue; 0 leaves their texts out. They are kept in the run's folder.

    Returns:
        The file's path.

    Raises:
        UserError: a folder holds nothing to be shown, or several have no ``out``.
    """
    with quiet():
        return distill.report.report([Path(folder) for folder in folders], None if out is None else Path(out), prompts)


def verify(
    folder: str | Path,
    judge: str | Path | None = None,
    data: str | Path | None = None,
    teacher: str | Path | None = None,
    steps: Sequence[int] | None = None,
    seed: int | None = None,
    same_seed: bool = False,
) -> Verification:
    """Measure an export's own table again, on other samples, and say which figures are where they must be.

    >>> verification = fewstep.verify("runs/student", steps=[8])  # doctest: +SKIP
    >>> verification.passed, [check.figure for check in verification.failures]  # doctest: +SKIP
    (True, [])
    >>> print(verification.table())  # doctest: +SKIP

    Args:
        folder: what `Student.export` wrote with an ``evaluation``, or `fewstep export` of a run that was evaluated.
        judge, data: where these are now; by default where they were.
        teacher: measured as well; by default its rows are left out.
        steps: those of the table to measure; by default all.
        seed: of the samples; by default another one than the evaluation's.
        same_seed: the evaluation's own, so that all figures must be equal. They are on the same machine and versions.

    Raises:
        UserError: there is no evaluation, or what it needs is not there.
    """
    places = [None if name is None else str(name) for name in (judge, data, teacher)]
    world = World(0, 1, local_device(0))
    with quiet():
        return measured_again(folder, world, places[0], places[1], places[2], tuple(steps or ()), seed, same_seed)


def _text(data: str | Path | DataConfig | None, length: int, tokenizer: PreTrainedTokenizerBase) -> DataConfig | None:
    """Where held-out text or prompts are; None for none."""
    if isinstance(data, DataConfig):
        whole = data.path if data.revision is None else f"{data.path}@{data.revision}"
        return data.model_copy(update={"heldout": data.heldout or whole})
    return None if data is None else heldout_text(str(data), length, tokenizer)
