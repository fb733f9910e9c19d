"""`fewstep distill`: a frozen teacher in, a few-step student out."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from distill.checkpoint import load_network
from distill.command import create_run, leave, open_run
from distill.config import DistillConfig, ModelConfig
from distill.data import load_corpus, load_tokenizer
from distill.engines import micro_batch
from distill.evaluate import check_length
from distill.loop import train
from distill.placement import place_teacher
from distill.progress import console
from distill.report import plot_training
from distill.run_folder import RunFolder
from distill.teacher_rows import training_rows
from distill.watch import CollapseWatch
from distill.world import start_world
from objectives.objective import Distillation
from objectives.step_reduction import StepReduction
from students.adapters import AdaptedDenoiser, is_adapter, merge_adapter, merged
from students.critic import Discriminator
from students.planner import PlannedDenoiser, load_planned, load_planner
from students.student import cast, frozen, trainable_copy
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.families.causal import CausalDenoiser, check_tokenizer, load_denoiser
from teachers.markov import MarkovDenoiser, is_markov, load_markov
from teachers.process import MaskedProcess


def load_teacher(config: ModelConfig) -> tuple[CausalDenoiser | MarkovDenoiser, PreTrainedTokenizerBase]:
    """The frozen teacher, a network in float32 or an exact source, and its tokenizer, checked against each other."""
    tokenizer = load_tokenizer(config.tokenizer or config.path, config.revision if config.tokenizer is None else None)
    if is_markov(config.path, config.revision):
        return _load_exact_teacher(config, tokenizer), tokenizer
    teacher = load_denoiser(
        config.path,
        tokenizer,
        config.mask_id,
        config.revision,
        config.trust_remote_code,
        shift=config.shift,
        attention=config.attention,
        block_size=config.block_size,
    )
    if teacher.spec.attention == "causal":
        raise UserError(
            f"teacher.path {config.path!r} is an autoregressive model; convert it with fewstep pretrain and model.init"
        )
    return frozen(teacher), tokenizer


def _load_exact_teacher(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> MarkovDenoiser:
    for key in ("mask_id", "shift", "attention", "block_size"):
        if getattr(config, key) is not None:
            raise UserError(
                f"teacher.{key} is set, but teacher.path {config.path!r} is an exact Markov source; leave it out"
            )
    teacher = load_markov(config.path, config.revision)
    check_tokenizer(tokenizer, teacher.spec.vocabulary, teacher.spec.mask_id, config.path)
    return teacher


def _check_exact(config: DistillConfig) -> None:
    """Refuse what needs a network of the teacher."""
    is_exact = f"teacher.path {config.teacher.path!r} is an exact Markov source, no network"
    if config.student.adapter is not None or config.objective.adapters:
        raise UserError(
            f"{is_exact} that adapters could sit on; leave out student.adapter and the objective's adapters"
        )
    if config.teacher.placement != "replicated":
        raise UserError(
            f"{is_exact} that could be spread out, but teacher.placement is {config.teacher.placement!r}; leave it out"
        )
    if config.student.init == "teacher":
        raise UserError(
            f"{is_exact} to start from, but student.init is 'teacher'; set student.init to a network of its "
            "vocabulary, such as RUN/model of fewstep pretrain"
        )


def load_student(config: DistillConfig, teacher: CausalDenoiser | MarkovDenoiser) -> Denoiser:
    """The network to train: an adapter on the teacher, a copy of it, or a checkpoint with the same vocabulary."""
    if isinstance(teacher, MarkovDenoiser):
        _check_exact(config)
    if config.student.adapter is not None:
        # the same seed as the critic's: their adapters start equal, as do a student and a critic that are copies
        torch.manual_seed(config.train.seed)
        return AdaptedDenoiser(teacher, config.student.adapter)
    if config.student.init == "teacher":
        return trainable_copy(teacher)
    student = load_planned(config.student.init, mask_id=teacher.spec.mask_id)
    if student.spec.vocabulary != teacher.spec.vocabulary:
        raise UserError(
            f"student.init {config.student.init!r} has {student.spec.vocabulary} vocabulary entries and the teacher "
            f"{teacher.spec.vocabulary}; start from a model with the teacher's vocabulary"
        )
    if student.spec.max_length < config.sequence_length:
        raise UserError(
            f"student.init {config.student.init!r} has {student.spec.max_length} positions and rows have "
            f"{config.sequence_length} tokens; set a smaller data.length, or start from a longer model"
        )
    return trainable_copy(student)


def load_averaged(
    folder: Path, tokenizer: PreTrainedTokenizerBase, teacher: ModelConfig | None
) -> CausalDenoiser | PlannedDenoiser:
    """The averaged network in a checkpoint's ``folder``; an adapter comes merged into the teacher it was trained on.

    A planner that lies there comes on it.

    Args:
        teacher: what the run's config says; None for a run without one.
    """
    if not is_adapter(folder):
        return load_planned(str(folder), tokenizer)
    if teacher is None:
        raise UserError(f"{folder} is an adapter, but its run's config names no teacher; put the config.yaml back")
    return load_planner(merge_adapter(load_teacher(teacher)[0], folder), folder)  # type: ignore[arg-type]


def as_distillation(config: DistillConfig, teacher: CausalDenoiser | MarkovDenoiser, student: Denoiser) -> Distillation:
    """What an objective is built on; critics start as the teacher, or as the student where the teacher is exact."""
    start = student if isinstance(teacher, MarkovDenoiser) else teacher
    return Distillation(teacher, student, MaskedProcess(config.teacher.process), config.sequence_length, start)


def load_discriminator(
    config: DistillConfig, checkpoint: Path, teacher: CausalDenoiser | MarkovDenoiser, student: Denoiser
) -> Discriminator:
    """A run's trained discriminator, frozen, in ``evaluate.precision``, with no adapter left on the teacher's copy.

    Raises:
        UserError: the run trained none, or the checkpoint is of another.
    """
    objective = config.objective.build(as_distillation(config, teacher, student))
    critic = objective.network("critic") if "critic" in objective.phases else None
    if not isinstance(critic, Discriminator):
        raise UserError(
            f"evaluate.sampler {config.evaluate.sampler.name!r} asks a discriminator, but {config.objective.name} "
            "trained none in this run; use sampler=ancestral, or a run with objective.ratio=discriminator, as "
            "didi_instruct has it"
        )
    load_network(checkpoint, "critic", critic)
    precision = getattr(torch, config.evaluate.precision)
    critic.backbone = merged(critic.backbone, precision)
    return cast(critic, precision).requires_grad_(False)


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
    teacher, tokenizer = load_teacher(config.teacher)
    length = config.sequence_length
    if length > teacher.spec.max_length:
        raise UserError(
            f"data.length {length} is longer than the teacher's {teacher.spec.max_length} positions; set a smaller one"
        )
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
    outcome = train(
        objective, optimizers, rows, config.train, config.deepspeed, run, world, length, resume, watch,
        config.evaluate.every, data,
    )  # fmt: skip
    if world.is_main:
        plot_training(run.read_metrics(), run.path / "training.png")
    leave(run, world, outcome)
    if world.is_main:
        console.print(f"student in {run.path}; next: fewstep evaluate {run.path}", highlight=False, soft_wrap=True)
    return run.path
