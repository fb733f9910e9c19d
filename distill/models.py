"""The one door to a loaded network: teacher, student and critic of a run. Finished ones are in distill/finished.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from distill.data.tokenizers import load_tokenizer
from distill.runtime.checkpoints import load_network
from distill.runtime.messages import warn
from students.adapters import AdaptedDenoiser, is_adapter, merge_adapter, merged
from students.planner import load_planned, load_planner
from students.student import cast, frozen, trainable, trainable_copy
from teachers.capability import Capability
from teachers.convert import in_blocks
from teachers.denoiser import Denoiser, DenoiserSpec, end_ids
from teachers.description import Description, describe
from teachers.errors import UserError
from teachers.families import Checkpoint, resolve
from teachers.families.family import OPTIONS, Partition, Spread
from teachers.families.stock.loading import says_denoiser
from teachers.headers import read_headers
from teachers.process import MaskedProcess

if TYPE_CHECKING:  # an export is opened without what training needs
    from distill.config import DataConfig, DistillConfig, ModelConfig
    from objectives.objective import Distillation
    from objectives.tail import Tail
    from students.critic import Discriminator

MASKS: dict[Capability, str] = {
    "absorbing process": "samplers fill masks and objectives predict what they hide; choose a model with a mask"
}
"""What all but asking for probabilities needs."""


def find_teacher(config: ModelConfig) -> Checkpoint:
    """The teacher's checkpoint, unread, whose family takes the options that the config gives.

    Raises:
        UserError: see `teachers.families.resolve` and `Checkpoint.check_options`.
    """
    checkpoint = resolve(config.path, config.revision, config.trust_remote_code, config.family)
    checkpoint.check_options(options_of(config), "teacher.")
    return checkpoint


@dataclass(frozen=True)
class Checkpoints:
    """What a distillation starts from, unread: the student's is the teacher's where it is a copy or an adapter."""

    teacher: Checkpoint
    student: Checkpoint


def find_checkpoints(config: DistillConfig) -> Checkpoints:
    """Resolve what a config names; of both, nothing but config.json is read.

    Raises:
        UserError: there is no such model, or the config asks for what its family can not do.
    """
    teacher = find_teacher(config.teacher)
    teacher.require(_needs_of_teacher(config))
    if config.teacher.placement == "sharded" and "quantization_config" in teacher.config:
        raise UserError(
            f"teacher.placement is 'sharded', and model {teacher.name!r} is compressed: such a one is read whole, or "
            "layer by layer; set teacher.placement to replicated or dispatched, or give the model it was made from"
        )
    student = teacher if config.student.init == "teacher" else resolve(config.student.init)
    student.require(_needs_of_student(config))
    # critics start as the teacher, or as the student where the teacher has no weights
    start = teacher if "weights" in teacher.family.capabilities else student
    start.require(_needs_of_critic(config))
    return Checkpoints(teacher, student)


def check_networks(config: DistillConfig, teacher: Denoiser, student: Denoiser) -> None:
    """Refuse what a network of a family that can do it can not do itself.

    Raises:
        UserError: a model is of a class without what the config asks for.
    """
    start = teacher if "weights" in teacher.capabilities else student
    name = config.teacher.path if config.student.init == "teacher" else config.student.init
    for network, path, needs in (
        (teacher, config.teacher.path, _needs_of_teacher(config)),
        (student, name, _needs_of_student(config)),
        (start, config.teacher.path if start is teacher else name, _needs_of_critic(config)),
    ):
        for capability, setting in needs.items():
            if capability not in network.capabilities:
                raise UserError(f"model {path!r} is of a class without {capability}, but {setting}")


def _needs_of_teacher(config: DistillConfig) -> dict[Capability, str]:
    placement: dict[str, Capability] = {"sharded": "sharding", "dispatched": "dispatch"}
    needs = MASKS | _needs_of_samplers(config)
    if config.student.adapter is not None or config.objective.adapters:
        needs["adapters"] = "the config asks for some; leave out student.adapter and the objective's adapters"
    if config.teacher.placement in placement:
        needs[placement[config.teacher.placement]] = f"teacher.placement is {config.teacher.placement!r}; leave it out"
    if config.student.init == "teacher":
        needs["weights"] = (
            "student.init is 'teacher'; set student.init to a network of its vocabulary, such as RUN/model of fewstep "
            "pretrain"
        )
    return needs


def _needs_of_samplers(config: DistillConfig) -> dict[Capability, str]:
    for section, sampler in (("sampler", config.sampler), ("evaluate.sampler", config.evaluate.sampler)):
        if sampler.cache is not None:
            return {"cache": f"{section}.cache is {sampler.cache!r}; leave it out"}
    return {}


def _needs_of_student(config: DistillConfig) -> dict[Capability, str]:
    needs = MASKS | _needs_of_samplers(config)
    needs["weights"] = "student.init names it; set student.init to a network"
    if config.train.gradient_checkpointing:
        needs["checkpointing"] = (
            f"train.gradient_checkpointing is {str(config.train.gradient_checkpointing).lower()}; set it to false"
        )
    return needs


def _needs_of_critic(config: DistillConfig) -> dict[Capability, str]:
    why = f"objective {config.objective.name} has a network that reads them; choose another objective or teacher"
    needs: dict[Capability, str] = dict.fromkeys(config.objective.capabilities, why)
    if config.sampler.needs_critic:
        needs["embeddings"] = f"sampler {config.sampler.name} mixes them; choose another one"
    return needs


def load_teacher(
    config: ModelConfig,
    checkpoint: Checkpoint | None = None,
    precision: torch.dtype = torch.float32,
    spread: Spread | Partition | None = None,
) -> tuple[Denoiser, PreTrainedTokenizerBase]:
    """The frozen teacher, a network or an exact source, and its tokenizer, checked against each other.

    Args:
        checkpoint: of `find_teacher`, for whoever has it.
        precision, spread: see `teachers.families.family.Reading`.

    Raises:
        UserError: it can not be loaded, is autoregressive, or has no masks.
    """
    checkpoint = find_teacher(config) if checkpoint is None else checkpoint
    check_usable(checkpoint)
    tokenizer = tokenizer_of(checkpoint, config.tokenizer)
    return load_frozen(config, checkpoint, tokenizer, precision, spread), tokenizer


def check_usable(checkpoint: Checkpoint) -> None:
    """Refuse what can not be sampled or read, before a tokenizer is looked for.

    Raises:
        UserError: it has no mask, or its weight files are not what they must be.
    """
    checkpoint.require(MASKS)
    if "weights" in checkpoint.family.capabilities:
        read_headers(checkpoint.folder, checkpoint.config)


def load_base(config: DistillConfig, precision: torch.dtype) -> tuple[Denoiser, PreTrainedTokenizerBase]:
    """The teacher of a run that is measured, see `load_teacher`.

    A discriminator on an adapter is added to it in float32 before both are cast; see `load_discriminator`.
    """
    checkpoint = find_teacher(config.teacher)
    merges = config.evaluate.sampler.needs_critic and config.objective.adapters
    return load_teacher(config.teacher, checkpoint, checkpoint.lossless(precision) if merges else precision)


def load_frozen(
    config: ModelConfig,
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase | None,
    precision: torch.dtype = torch.float32,
    spread: Spread | Partition | None = None,
) -> Denoiser:
    """A frozen denoiser as a config describes it, of any process, with or without a tokenizer.

    Raises:
        UserError: it can not be loaded, or is autoregressive.
    """
    teacher = checkpoint.load(tokenizer, precision, spread, **options_of(config))
    if teacher.spec.attention == "causal":
        raise UserError(
            f"teacher.path {config.path!r} is an autoregressive model; make a teacher of it with fewstep convert"
        )
    if config.mask_id is not None and config.attention is None and is_taken_for_denoiser(checkpoint, tokenizer):
        warn(
            f"nothing in {config.path} says that it is a denoiser; it is taken for one because mask_id is set: an "
            "autoregressive model is made one with fewstep convert, and teacher.attention=full says that it is one"
        )
    return frozen(teacher)


def options_of(config: ModelConfig) -> dict[str, Any]:
    """What a config says of a checkpoint that does not say it itself."""
    return {key: getattr(config, key) for key in OPTIONS}


def is_taken_for_denoiser(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a model may as well be autoregressive by all that its files say."""
    has_mask = tokenizer is not None and tokenizer.mask_token_id is not None
    return "stock class" in checkpoint.family.capabilities and not has_mask and not says_denoiser(checkpoint.config)


def tokenizer_of(checkpoint: Checkpoint, name: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of that name, or else the checkpoint's own, or its family's.

    Raises:
        UserError: it can not be loaded.
    """
    own = checkpoint.family.tokenizer(checkpoint)
    if name is not None or own == str(checkpoint.folder):
        return load_tokenizer(name or own)
    try:
        return load_tokenizer(own)
    except UserError as error:
        raise UserError(
            f"model {checkpoint.name!r} holds no tokenizer; set teacher.tokenizer to a folder with the one it was "
            f"trained with, or put its files beside the weights: {own} is not to be had here ({error})"
        ) from error


def describe_name(name: str, family: str | None = None, tokenizer: str | None = None) -> Description:
    """What a checkpoint is, with its own tokenizer where that is in its folder, and need not be downloaded.

    Raises:
        UserError: see `teachers.description.describe`.
    """
    checkpoint = resolve(name, family=family)
    words = tokenizer_of(checkpoint, tokenizer) if checkpoint.holds_tokenizer or tokenizer is not None else None
    return describe(checkpoint, words)


def load_student(
    config: DistillConfig,
    teacher: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Checkpoint | None = None,
    precision: torch.dtype = torch.float32,
    original: Callable[[], Denoiser] | None = None,
) -> Denoiser:
    """The network to train: an adapter on the teacher, a copy of it, or a checkpoint with the same vocabulary.

    Args:
        tokenizer: the teacher's.
        checkpoint: of ``student.init``, for whoever has it.
        precision: of its weights as they are read.
        original: reads the teacher again, where it is not whole in this process; None to copy it.
    """
    if config.student.adapter is not None:
        check_adapter_blocks(config, teacher.spec)
        # the same seed as the critic's: their adapters start equal, as do a student and a critic that are copies
        torch.manual_seed(config.train.seed)
        return AdaptedDenoiser(teacher, config.student.adapter)
    if config.student.init == "teacher":
        copy = trainable_copy(teacher) if original is None else trainable(original())
        return in_blocks(copy, config.blocks.size, config.teacher.path)
    checkpoint = resolve(config.student.init) if checkpoint is None else checkpoint
    options: dict[str, Any] = {"mask_id": teacher.spec.mask_id} if "mask_id" in checkpoint.family.options else {}
    student = load_planned(checkpoint, tokenizer, precision=precision, **options)
    _check_start(config, student.spec, teacher.spec)
    return in_blocks(trainable(student), config.blocks.size, config.student.init)


def check_adapter_blocks(config: DistillConfig, teacher: DenoiserSpec) -> None:
    """Refuse a student in blocks of its own that is an adapter, and looks where its teacher does.

    Raises:
        UserError: it is one.
    """
    if config.blocks.size not in (None, teacher.block_size):
        raise UserError(
            f"blocks.size is {config.blocks.size}, but the student is an adapter on a teacher with "
            f"{teacher.attention} attention, and looks where that does; leave out blocks.size, or student.adapter"
        )


def _check_start(config: DistillConfig, student: DenoiserSpec, teacher: DenoiserSpec) -> None:
    name = config.student.init
    if (student.vocabulary, student.mask_id) != (teacher.vocabulary, teacher.mask_id):
        raise UserError(
            f"student.init {name!r} has {student.vocabulary} vocabulary entries, mask {student.mask_id}, and the "
            f"teacher {teacher.vocabulary}, mask {teacher.mask_id}; start from a model with the teacher's vocabulary"
        )
    if student.max_length < config.sequence_length:
        raise UserError(
            f"student.init {name!r} has {student.max_length} positions and rows have {config.sequence_length} tokens; "
            "set a smaller data.length, or start from a longer model"
        )


def load_averaged(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    teacher: ModelConfig | None,
    precision: torch.dtype = torch.float32,
) -> Denoiser:
    """The averaged network in a checkpoint's ``folder``; an adapter comes merged into the teacher it was trained on.

    A planner that lies there comes on it.

    Args:
        teacher: what the run's config says; None for a run without one.
    """
    if not is_adapter(folder):
        return load_planned(resolve(str(folder)), tokenizer, precision)
    if teacher is None:
        raise UserError(f"{folder} is an adapter, but its run's config names no teacher; put the config.yaml back")
    base = find_teacher(teacher)
    network, _ = load_teacher(teacher, base, base.lossless(precision))
    return load_planner(merge_adapter(network, folder, precision), folder)


def load_named(
    names: dict[str, str], precision: torch.dtype = torch.float32
) -> tuple[dict[str, Denoiser], PreTrainedTokenizerBase]:
    """Models of one vocabulary, by folder or name, with the tokenizer of the first.

    Args:
        names: what each is called here → its name.
    """
    checkpoints = {kind: resolve(name) for kind, name in names.items()}
    for checkpoint in checkpoints.values():
        check_usable(checkpoint)
    tokenizer = tokenizer_of(next(iter(checkpoints.values())))
    models = {kind: load_planned(checkpoint, tokenizer, precision) for kind, checkpoint in checkpoints.items()}
    return models, tokenizer


def as_distillation(
    config: DistillConfig,
    teacher: Denoiser,
    student: Denoiser,
    start: Denoiser | None = None,
    end: int | None = None,
) -> Distillation:
    """What an objective is built on.

    Args:
        start: what critics start as; by default the teacher, or the student where that has no weights.
        end: the end-of-text token that rows of prompts are filled up with.
    """
    from objectives.objective import Distillation

    if start is None:
        start = teacher if "weights" in teacher.capabilities else student
    process, tail = MaskedProcess(config.teacher.process), tail_of(config.data, student, end)
    return Distillation(teacher, student, process, config.sequence_length, start, config.sampler, tail)


def tail_of(data: DataConfig | None, denoiser: Denoiser, end: int | None) -> Tail:
    """What the tails of a run's rows count: as ``data.tail`` says of completions; rows of text have none.

    Args:
        end: the token that rows are filled up with, beside those that end the texts of the denoiser.
    """
    from objectives.tail import Tail

    if data is None or not data.prompted:
        return Tail()
    ends = [*([] if end is None else [end]), *end_ids(denoiser)]
    return Tail(data.tail, tuple(sorted(set(ends))))


def load_discriminator(config: DistillConfig, checkpoint: Path, teacher: Denoiser, student: Denoiser) -> Discriminator:
    """A run's trained discriminator, frozen, in ``evaluate.precision``, with no adapter left on the teacher's copy.

    Raises:
        UserError: the run trained none, or the checkpoint is of another.
    """
    from students.critic import Discriminator

    objective = config.objective.build(as_distillation(config, teacher, student))
    critic = objective.networks.get("critic")
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


def load_released(checkpoint: Checkpoint, precision: torch.dtype, **options: Any) -> Discriminator | None:
    """The discriminator that was released with a model, frozen; None where none was."""
    from students.critic import released_discriminator

    critic = released_discriminator(checkpoint, **options)
    return None if critic is None else cast(critic, precision)
