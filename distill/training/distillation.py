"""A distillation, from its config to a student: in a run folder, as the command does it, or in memory alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from distill.config import DistillConfig, OptimizerConfig
from distill.config.blocks import in_own_blocks
from distill.config.deepspeed import deepspeed_section
from distill.data.batches import Data, load_data
from distill.data.prompted import PromptedCorpus
from distill.data.teacher_rows import training_rows
from distill.evaluation.checks import check_length
from distill.models import as_distillation, check_networks, find_checkpoints, load_frozen, load_student, load_teacher
from distill.runtime.messages import say
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import ALONE, World, returning_memory, start_world
from distill.training.account import Account
from distill.training.engine import check_flex_attention, micro_batch
from distill.training.loop import Outcome, train
from distill.training.opening import create_run, leave, open_run
from distill.training.placement import offload_folder, place_teacher, spread_of
from distill.training.trainer import Trainer
from distill.training.watch import CollapseWatch
from distill.training.wiring import has_other_blocks, wired
from objectives.objective import Objective
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.vocabulary import token_id

MEASURED = 64
"""Prompts after which what must be known before training is measured [own]."""


@dataclass(frozen=True)
class Networks:
    """What a distillation starts from: the frozen teacher, the network to train, and their tokenizer."""

    teacher: Denoiser
    student: Denoiser
    tokenizer: PreTrainedTokenizerBase
    original: Callable[[], Denoiser] | None = None


def load_networks(
    config: DistillConfig,
    loaded: tuple[Denoiser, PreTrainedTokenizerBase] | None = None,
    world: World = ALONE,
    run: Path | None = None,
) -> Networks:
    """Load teacher and student in the precision they train in, and check that they are as long as their rows.

    A teacher that is sharded or dispatched goes there as it is read, and is whole on no process: what would be a copy
    of it is read from its files again.

    Args:
        loaded: the teacher and its tokenizer, for whoever has them.
        run: the run's folder.

    Raises:
        UserError: they can not be loaded, can not do what the config asks for, or are too short.
    """
    checkpoints = find_checkpoints(config)
    precision = getattr(torch, config.train.precision)
    first = checkpoints.teacher.lossless(precision) if config.objective.unrounded else precision
    if loaded is None:
        spread = spread_of(config.teacher, config.train, world, run)
        with returning_memory() if spread is not None else nullcontext():
            teacher, tokenizer = load_teacher(config.teacher, checkpoints.teacher, first, spread)
        if config.teacher.placement != "replicated":  # a replicated one is copied first
            place_teacher(teacher, config.teacher, config.train, world, offload_folder(run))
    else:
        teacher, tokenizer = loaded
    if config.sequence_length > teacher.spec.max_length:
        raise UserError(
            f"data.length {config.sequence_length} is longer than the teacher's {teacher.spec.max_length} positions; "
            "set a smaller one"
        )
    if config.sequence_length > teacher.spec.length:
        longer = f"more than the {teacher.spec.length} that the teacher was trained on"
        say(f"rows have {config.sequence_length} tokens, {longer}")
    original = None
    if loaded is None and config.teacher.placement != "replicated":
        original = partial(load_frozen, config.teacher, checkpoints.teacher, tokenizer, first)
    first = checkpoints.student.lossless(precision) if config.objective.unrounded else precision
    student = load_student(config, teacher, tokenizer, checkpoints.student, first, original)
    check_networks(config, teacher, student)
    if config.train.flex_attention and student.spec.attention != "block":
        raise UserError(
            "train.flex_attention is true, but it is for attention in blocks, and this student's is "
            f"{student.spec.attention}; leave it out"
        )
    check_samplers(config, student)
    if config.evaluate.length is not None:
        check_length([teacher, student], config.evaluate.length)
    return Networks(teacher, student, tokenizer, original)


def check_samplers(config: DistillConfig, student: Denoiser) -> None:
    """Refuse samplers that do not fit a student of whole rows; of one in blocks, see `distill.config.blocks`.

    Raises:
        UserError: there are no blocks of attention, no end token to stop at, or fewer steps than blocks.
    """
    if student.spec.attention == "block":
        return
    sampler, measured = config.sampler.suited(student), config.evaluate.sampler.suited(student)
    watched = None if config.evaluate.every is None else config.evaluate.watch_steps
    for key, steps, rule in (
        (f"objective.{config.objective.steps_key}", config.objective.fewest_steps, sampler),
        ("evaluate.watch_steps", watched, measured),
    ):
        fewest = rule.steps_between(config.sequence_length)[0]
        prompted = config.data is not None and config.data.prompted  # which leaves fewer blocks to write
        if steps is not None and steps < fewest and not prompted:
            raise UserError(
                f"{key} has {steps}, fewer steps than the {fewest} blocks of {rule.block_length} tokens of a row; set "
                "it to more, or sampler.budget=block, which counts the steps of each block"
            )


def load_rows(config: DistillConfig, networks: Networks) -> Data | None:
    """The data, without what is held out of them; None where the config names none."""
    if config.data is None:
        return None
    corpus = load_data(config.data, networks.tokenizer, mask_id=networks.teacher.spec.mask_id)
    return corpus.split(config.data.heldout_fraction)[0]


def build_objective(config: DistillConfig, networks: Networks, corpus: Data | None = None) -> Objective:
    """The objective with networks of its own, which are copied while their original is whole.

    Args:
        config: of `in_own_blocks`.
        corpus: the data, of whose prompts some are used to measure what must be known before training.

    Raises:
        UserError: see `wired`.
    """
    start, end = critic_start(config, networks), token_id(networks.tokenizer, "eos")
    distillation = as_distillation(config, networks.teacher, networks.student, start, end)
    if isinstance(corpus, PromptedCorpus):
        rows = range(min(MEASURED, corpus.rows))
        batch = corpus.batch(config.train.seed, rows, networks.teacher.spec.mask_id)
        distillation = replace(distillation, prompted=batch.canvas)
    torch.manual_seed(config.train.seed)  # the discriminator's head and the critic's adapter start at random
    return wired(config, distillation)


def critic_start(config: DistillConfig, networks: Networks) -> Denoiser | None:
    """What critics start as where the teacher is not whole in this process; None where it is.

    An adapter sits on the teacher wherever that is. A copy is made of the student, which starts as the teacher does, or
    else of the teacher's files. Where only the student has its blocks, it is made of the student.
    """
    if has_other_blocks(networks.student.spec, networks.teacher.spec):
        return None if config.objective.adapters else networks.student
    copies = "critic" in config.objective.phases or config.objective.capabilities
    if networks.original is None or config.objective.adapters or not copies:
        return None
    is_teacher = config.student.init == "teacher" and config.student.adapter is None
    return networks.student if is_teacher else networks.original()


def optimizers(config: DistillConfig, objective: Objective) -> dict[str, OptimizerConfig]:
    """One a phase."""
    return {phase: getattr(config.train, phase) for phase in objective.phases}


def in_memory(config: DistillConfig, networks: Networks, world: World) -> Trainer:
    """A trainer that writes nothing: neither the teacher's rows nor a checkpoint is kept.

    Raises:
        UserError: a mistake in the input.
    """
    check_flex_attention(config.train, world)
    config = in_own_blocks(config, networks.student.spec, networks.teacher.spec)
    corpus = load_rows(config, networks)
    objective = build_objective(config, networks, corpus)
    place_teacher(networks.teacher, config.teacher, config.train, world, offload_folder())
    rows = training_rows(objective, config, networks.teacher, corpus, None, world)
    trained = optimizers(config, objective)
    return Trainer(objective, trained, rows, config.train, None, world, config.sequence_length)


def in_run_folder(
    config: DistillConfig,
    path: str | Path,
    resume: bool = False,
    allow_changes: bool = False,
    loaded: tuple[Denoiser, PreTrainedTokenizerBase] | None = None,
    signals: bool = True,
) -> Outcome:
    """Train a student and leave it, averaged, in the run folder's checkpoints.

    Everything that can be wrong with the input is found before the folder is made.

    Args:
        allow_changes: resume although config or data differ from what the run was started with.
        loaded: the teacher and its tokenizer, for whoever has them.
        signals: end with a checkpoint at a SIGTERM.

    Raises:
        UserError: a mistake in the input.
        RunError: training could not go on.
        SystemExit: with code `PREEMPTED`, after a SIGTERM and a checkpoint.
    """
    world = start_world()
    micro_batch(config.train, world, config.objective.group)
    check_flex_attention(config.train, world)
    run = RunFolder(path)
    config = open_run(run, config, world, resume, allow_changes)
    account = Account(world, config.train.seed)
    networks = load_networks(config, loaded, world, run.path)
    account.charge_teacher(networks.teacher)
    config = in_own_blocks(config, networks.student.spec, networks.teacher.spec)
    watch = CollapseWatch(config, networks.teacher, networks.tokenizer, world) if config.evaluate.every else None
    corpus = load_rows(config, networks)
    objective = build_objective(config, networks, corpus)

    create_run(run, config, networks.tokenizer, world, resume)
    account.keep_in(run, resume)
    if watch is not None:
        watch.reference = objective.reference
    place_teacher(networks.teacher, config.teacher, config.train, world, offload_folder(run.path))
    rows = training_rows(objective, config, networks.teacher, corpus, run, world, account.save)
    data = None if corpus is None or rows is None or allow_changes else corpus.identity()
    sharded = config.teacher.placement == "sharded"
    deepspeed: dict[str, Any] | None = deepspeed_section(config.deepspeed, world.size, sharded)
    outcome = train(
        objective, optimizers(config, objective), rows, config.train, deepspeed, run, world, config.sequence_length,
        resume, watch, config.evaluate.every, data, signals, account,
    )  # fmt: skip
    if world.is_main:
        from distill.evaluation.reports.plots import plot_training  # slow to import, so not before it is needed

        plot_training(run.read_metrics(), run.path / "training.png")
    leave(run, world, outcome)
    return outcome
