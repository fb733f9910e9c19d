"""`fewstep distill`: a frozen teacher in, a few-step student out."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.config import DistillConfig
from distill.data.corpus import load_corpus
from distill.data.teacher_rows import training_rows
from distill.evaluation.evaluate import check_length
from distill.models import as_distillation, check_capabilities, load_student, load_teacher
from distill.runtime.messages import say
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import start_world
from distill.training.engine import micro_batch
from distill.training.engines import deepspeed_section
from distill.training.loop import train
from distill.training.opening import create_run, leave, open_run
from distill.training.placement import place_teacher
from distill.training.watch import CollapseWatch
from objectives.step_reduction import StepReduction
from teachers.errors import UserError


def distil(config: DistillConfig, run_path: str | Path, resume: bool = False, allow_changes: bool = False) -> Path:
    """Train a student and leave it, averaged, in the run folder's checkpoints.

    Everything that can be wrong with the input is found before the folder is made.

    Args:
        allow_changes: resume although config or data differ from what the run was started with.

    Returns:
        The run folder, for `fewstep evaluate` and `fewstep export`.

    Raises:
        UserError: a mistake in the input.
        RunError: training could not go on.
        SystemExit: with code `PREEMPTED`, after a SIGTERM and a checkpoint.
    """
    world = start_world()
    micro_batch(config.train, world, config.objective.group)
    run = RunFolder(run_path)
    config = open_run(run, config, world, resume, allow_changes)
    check_capabilities(config)
    teacher, tokenizer = load_teacher(config.teacher)
    length = config.sequence_length
    if length > teacher.spec.max_length:
        raise UserError(
            f"data.length {length} is longer than the teacher's {teacher.spec.max_length} positions; set a smaller one"
        )
    if length > teacher.spec.length:
        say(f"rows have {length} tokens, more than the {teacher.spec.length} that the teacher was trained on")
    student = load_student(config, teacher)
    if config.evaluate.length is not None:
        check_length([teacher, student], config.evaluate.length)
    watch = CollapseWatch(config, teacher, tokenizer, world) if config.evaluate.every else None
    corpus = load_corpus(config.data, tokenizer).split(config.data.heldout_fraction)[0] if config.data else None

    create_run(run, config, tokenizer, world, resume)
    torch.manual_seed(config.train.seed)  # the discriminator's head and the critic's adapter start at random
    # networks are copied while their original is whole and in float32; their engines put them where they train
    objective = config.objective.build(as_distillation(config, teacher, student))
    if watch is not None and isinstance(objective, StepReduction):
        watch.start = objective.target
    place_teacher(teacher, config.teacher, config.train, world, run.path / "offload")
    data = corpus.identity() if corpus is not None and objective.needs != "nothing" and not allow_changes else None
    rows = training_rows(objective, config, teacher, corpus, run, world)
    optimizers = {phase: getattr(config.train, phase) for phase in objective.phases}
    deepspeed = deepspeed_section(config.deepspeed, world, config.teacher.placement == "sharded")
    outcome = train(
        objective, optimizers, rows, config.train, deepspeed, run, world, length, resume, watch,
        config.evaluate.every, data,
    )  # fmt: skip
    if world.is_main:
        from distill.evaluation.reports.plots import plot_training  # slow to import, so not before it is needed

        plot_training(run.read_metrics(), run.path / "training.png")
    leave(run, world, outcome)
    if world.is_main:
        say(f"student in {run.path}; next: fewstep evaluate {run.path}")
    return run.path
