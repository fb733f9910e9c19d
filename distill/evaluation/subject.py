"""What is to be measured: the pair of a run folder, or of two names."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, DistillConfig, EvaluateConfig, apply_override, load_config, validate
from distill.config.precision import faster_precision, settled
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.bench import Bench
from distill.evaluation.judge import load_judge
from distill.evaluation.reference import heldout_text, reference_text
from distill.evaluation.results import Evaluation, Method, ModelDescription
from distill.evaluation.tasks.measure import Answers, TaskBench
from distill.evaluation.tasks.results import TaskEvaluation
from distill.evaluation.tasks.task import check_task, load_task
from distill.finished import written_schedule, written_settings
from distill.models import load_averaged, load_base, load_discriminator, load_named, load_released
from distill.runtime.checkpoints import AVERAGE, best_checkpoint, verify_checkpoint
from distill.runtime.compilation import compile_network
from distill.runtime.cost import Cost
from distill.runtime.resources import spent
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from students.samplers import written_sampler
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.families import resolve
from teachers.process import MaskedProcess
from teachers.source import model_folder


@dataclass(frozen=True)
class Subject:
    """What is measured, and how.

    Attributes:
        models: by ``teacher`` and ``student``; one may be missing.
        names: where they came from.
        text: held-out real text; None for none. training_text: what was trained on; None where it is not known.
        critic: the student's, for a sampler that asks one.
        training: what the student's run spent; None where nobody knows.
    """

    config: EvaluateConfig
    models: dict[str, Denoiser]
    names: dict[str, str]
    tokenizer: PreTrainedTokenizerBase
    process: MaskedProcess = field(default_factory=MaskedProcess)
    text: DataConfig | None = None
    training_text: DataConfig | None = None
    critic: nn.Module | None = None
    training: Cost | None = None

    @property
    def length(self) -> int:
        """L, tokens of every sample."""
        if self.config.length is not None:
            return self.config.length
        return self.text.length if self.text else min(m.spec.length for m in self.models.values())

    @property
    def parts(self) -> tuple[Denoiser | None, Denoiser | None, nn.Module | None]:
        """Teacher, student and critic, as `Bench` takes them."""
        return self.models.get("teacher"), self.models.get("student"), self.critic

    def on(self, device: torch.device | str) -> Subject:
        """The same, frozen and on a device, compiled if the config asks for it."""
        models = {name: frozen_on(model, device) for name, model in self.models.items()}
        for model in models.values():
            compile_network(model, self.config.compile)
        return replace(self, models=models, critic=None if self.critic is None else self.critic.to(device))

    def bench(self, world: World) -> Bench:
        """What it is measured with, checked against it before and after the text is read.

        Raises:
            UserError: see `distill.evaluation.checks.check` and `load_judge`.
        """
        config = self.config
        judge = load_judge(config.judge, self.tokenizer, config.retokenize, world.device)
        bench = Bench(judge, config, self.length, self.process, world=world)
        bench.check(*self.parts)
        model = next(iter(self.models.values()))
        bench = bench.with_text(self.text, self.tokenizer, model.spec.mask_id)
        bench.check(*self.parts)
        return bench.with_gauges(self.training_text, self.tokenizer, model)

    def measure(self, bench: Bench, tell: Callable[[Evaluation], None] | None = None) -> Evaluation:
        """The evaluation, which says where the models came from, how they were measured, and what that took.

        Args:
            tell: see `evaluate`.
        """
        start = time.monotonic()

        def described(evaluation: Evaluation) -> Evaluation:
            cost = cost_of(evaluation, bench.world, time.monotonic() - start)
            return replace(
                evaluation, models=self.descriptions, training=self.training, cost=cost, method=method_of(self)
            )  # fmt: skip

        told = None if tell is None else lambda known: tell(described(known))
        return described(bench.evaluate(*self.parts, served=True, tell=told))

    @property
    def descriptions(self) -> dict[str, ModelDescription]:
        """Of the models, for results."""
        return {
            name: ModelDescription(self.names[name], sum(p.numel() for p in model.parameters()))
            for name, model in self.models.items()
        }

    def task_bench(self, world: World) -> TaskBench:
        """The task that it is asked, checked against it.

        Raises:
            UserError: see `load_task` and `TaskBench.check`.
        """
        assert self.config.task is not None
        task = load_task(self.config.task, self.tokenizer, world)
        bench = TaskBench(task, self.tokenizer, self.config, self.length, self.process, world)
        bench.check(*self.parts)
        return bench

    def ask(self, bench: TaskBench) -> tuple[TaskEvaluation, list[Answers]]:
        """The figures of a task, and all answers."""
        answers = bench.ask(*self.parts)
        evaluation = bench.evaluation(answers, self.descriptions, next(iter(self.models.values())).device)
        return replace(evaluation, method=method_of(self)), answers


def cost_of(evaluation: Evaluation, world: World, seconds: float) -> Cost:
    """What it took to measure all its rows; collective."""
    rows = [*evaluation.rows, *(evaluation.served or ())]
    teacher = sum(row.passes or 0 for row in rows if row.model == "teacher")
    student = sum(row.passes or 0 for row in rows) - teacher
    critic = sum(round(row.critic_nfe * row.samples) for row in rows)
    here = (teacher, student, critic) if world.is_main else (0, 0, 0)
    tokens = sum(row.samples for row in rows) * evaluation.sampling.length
    return spent(world, seconds, here, tokens, (evaluation.sampling.seed,))


def method_of(subject: Subject) -> Method:
    """All that it takes to measure it again."""
    settings = {**subject.config.model_dump(mode="json"), "length": subject.length, "data": None}
    text = None if subject.text is None else subject.text.model_dump(mode="json")
    return Method(command_of(settings, text), settings, text)


def command_of(settings: dict[str, Any], text: dict[str, Any] | None) -> str:
    """The command that measures a student named FOLDER with settings, those left out that are the defaults."""
    words = _unusual(settings, EvaluateConfig().model_dump(mode="json"))
    if text is None:
        return shlex.join(["fewstep", "evaluate", "--student", "FOLDER", *words])
    name = text["heldout"] or text["path"]
    usual = DataConfig(path=name, heldout=name, length=text["length"]).model_dump(mode="json")
    words += [f"data.{word}" for word in _unusual({**text, "path": name, "heldout": name}, usual)]
    return shlex.join(["fewstep", "evaluate", "--student", "FOLDER", "--data", name, *words])


def _unusual(values: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value != usual[key]]


def frozen_on(model: Denoiser, device: torch.device | str) -> Denoiser:
    """A model ready to be sampled."""
    return model.requires_grad_(False).eval().to(device)


def run_subject(run: RunFolder, overrides: list[str], world: World) -> Subject:
    """A run's best checkpoint and its teacher, as its config says.

    Args:
        overrides: ``key=value`` of the evaluate section.

    Raises:
        UserError: there is no checkpoint, it is damaged, or the config has a mistake.
    """
    config, checkpoint = world.on_main(lambda: _read_run(run, overrides))
    tokenizer = load_tokenizer(str(run.tokenizer))
    evaluation = config.evaluate
    check_task(evaluation)
    precision = getattr(torch, evaluation.precision)
    teacher = load_base(config, precision)[0]
    student = load_averaged(checkpoint / AVERAGE, tokenizer, config.teacher, precision)
    if evaluation.length is None:
        evaluation = evaluation.model_copy(update={"length": config.sequence_length})
    asks_teacher = evaluation.task is None or evaluation.task.teacher
    return Subject(
        config=evaluation,
        models={"teacher": teacher, "student": student} if asks_teacher else {"student": student},
        names={"teacher": config.teacher.path, "student": str(checkpoint / AVERAGE)},
        tokenizer=tokenizer,
        process=MaskedProcess(config.teacher.process),
        text=reference_text(config, tokenizer),
        training_text=config.data,
        critic=load_discriminator(config, checkpoint, teacher, student) if evaluation.sampler.needs_critic else None,
        training=Cost.load(run.path),
    )


def _read_run(run: RunFolder, overrides: list[str]) -> tuple[DistillConfig, Path]:
    config = settled(load_config(DistillConfig, run.config, [f"evaluate.{o}" for o in overrides]))
    checkpoint = best_checkpoint(run)
    if checkpoint is None:
        raise UserError(
            f"run {run.path} has no checkpoint yet; let it train until it has saved one, then evaluate again"
        )
    verify_checkpoint(checkpoint)
    return config, checkpoint


def model_subject(name: str, overrides: list[str], world: World) -> Subject:
    """One model alone: a student where it is an export.

    Raises:
        UserError: see `named_subject`.
    """
    is_student = "max_denoising_steps" in written_settings(model_folder(name))
    return named_subject(name if is_student else None, None if is_student else name, overrides, world)


def named_subject(student: str | None, teacher: str | None, overrides: list[str], world: World) -> Subject:
    """Models by their folders or names; one of them may be left out.

    The sampler, the canvas and the schedule are what the student was exported with, or the teacher where it is alone,
    as far as their folders say so.

    Args:
        overrides: ``key=value`` of `EvaluateConfig`; ``data.key=value`` of the data that ``data`` names, which no run
            describes.

    Raises:
        UserError: no name, one that does not load, or a mistake in the settings.
    """
    names = {kind: name for kind, name in (("teacher", teacher), ("student", student)) if name}
    if not names:
        raise UserError("there is nothing to evaluate; give a run folder, or --student and/or --teacher")
    written = written_settings(model_folder(student or names["teacher"]))
    values, rows = _own_values(written), [o.removeprefix("data.") for o in overrides if o.startswith("data.")]
    for override in overrides:
        if not override.startswith("data."):
            apply_override(EvaluateConfig, values, override)
    config = validate(EvaluateConfig, values)
    if rows and config.data is None:
        raise UserError(f"data.{rows[0]} says what held-out data are like, and there are none; name them with --data")
    check_task(config)
    if config.precision == "auto":
        config = config.model_copy(update={"precision": world.on_main(faster_precision)})
    models, tokenizer = load_named(names, getattr(torch, config.precision))
    critic = None
    if student and config.sampler.needs_critic:
        critic = load_released(resolve(student), getattr(torch, config.precision))
    process = MaskedProcess(written_schedule(written))
    training = None if student is None else Cost.load(model_folder(student))
    subject = Subject(config, models, names, tokenizer, process, critic=critic, training=training)
    if config.data is None:
        return subject
    return replace(subject, text=heldout_text(config.data, subject.length, tokenizer, rows))


def _own_values(written: dict[str, Any]) -> dict[str, Any]:
    """What an export says of how it is measured, as keys of `EvaluateConfig`."""
    values: dict[str, Any] = {}
    if "sampler" in written:
        values["sampler"] = written_sampler(written["sampler"]).model_dump(mode="json")
    if "canvas_length" in written:
        values["length"] = written["canvas_length"]
    return values
