"""The one door to a loaded network: teacher, student, critic, and the finished student of a run or an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from distill.data.tokenizers import load_tokenizer
from distill.runtime.run_folder import RunFolder
from students.adapters import AdaptedDenoiser, is_adapter, merge_adapter, merged
from students.planner import PlannedDenoiser, load_planned, load_planner
from students.samplers import Sampler, written_sampler
from students.student import cast, frozen, trainable_copy
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.families.causal import CausalDenoiser, check_tokenizer, load_denoiser
from teachers.markov import MarkovDenoiser, is_markov, load_markov
from teachers.process import MaskedProcess, Schedule
from teachers.source import model_folder, parse_source

if TYPE_CHECKING:  # an export is opened without what training needs
    from distill.config import DistillConfig, ModelConfig
    from objectives.objective import Distillation
    from students.critic import Discriminator

STEPS = 8  # what a student is exported for unless told otherwise [own]


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
    from objectives.objective import Distillation

    start = student if isinstance(teacher, MarkovDenoiser) else teacher
    return Distillation(
        teacher, student, MaskedProcess(config.teacher.process), config.sequence_length, start, config.sampler
    )


def load_discriminator(
    config: DistillConfig, checkpoint: Path, teacher: CausalDenoiser | MarkovDenoiser, student: Denoiser
) -> Discriminator:
    """A run's trained discriminator, frozen, in ``evaluate.precision``, with no adapter left on the teacher's copy.

    Raises:
        UserError: the run trained none, or the checkpoint is of another.
    """
    from distill.training.checkpoint import load_network
    from students.critic import Discriminator

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


@dataclass(frozen=True)
class Student:
    """A finished denoiser and what it was made for.

    Attributes:
        canvas_length: tokens it is to write at once: as many as it was evaluated with, or else trained.
        schedule: of the masked process it was trained with.
        steps: forward passes it is meant for.
        sampler: what it was evaluated with while it was trained.
        origin: one sentence for the model card.
    """

    denoiser: CausalDenoiser | PlannedDenoiser
    tokenizer: PreTrainedTokenizerBase
    canvas_length: int
    schedule: Schedule
    steps: int
    sampler: Sampler
    origin: str


def open_student(name: str | Path) -> Student:
    """Load the averaged student of a run folder's best checkpoint, or a model folder such as an export.

    Raises:
        UserError: no such folder, neither kind of folder, no checkpoint yet, damaged files, or an autoregressive model.
    """
    disable_progress_bar()
    source = parse_source(str(name))
    path = Path(source.path) if source.revision is None else model_folder(str(name))
    if not path.is_dir():
        raise UserError(f"{name} is not a folder; give a run folder, an exported model or bundled:NAME")
    if (path / "config.json").is_file():
        student = _open_model(path, path.name if source.revision is None else str(name))
    elif (path / "config.yaml").is_file():
        student = _open_run(path)
    else:
        raise UserError(
            f"{name} is neither a run folder (config.yaml) nor a model folder (config.json); give one of the two"
        )
    if student.denoiser.spec.attention == "causal":
        raise UserError(f"{name} is an autoregressive model, not a denoiser; give a distilled or pretrained denoiser")
    student.denoiser.requires_grad_(False).eval()
    return student


def _open_model(path: Path, name: str) -> Student:
    tokenizer = load_tokenizer(str(path))
    denoiser = load_planned(str(path), tokenizer)
    written = denoiser.model.generation_config.to_dict()
    return Student(
        denoiser,
        tokenizer,
        written.get("canvas_length") or denoiser.spec.max_length,
        written.get("noise_schedule") or "log-linear",
        written.get("max_denoising_steps") or STEPS,
        written_sampler(written.get("sampler")),
        f"Exported from the model folder `{name}`.",
    )


def _open_run(path: Path) -> Student:
    from distill.config import ModelConfig
    from distill.training.checkpoint import best_checkpoint, verify_checkpoint

    run = RunFolder.open(path)
    checkpoint = best_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint yet; wait for the first one, or resume the run")
    state = verify_checkpoint(checkpoint)
    tokenizer = load_tokenizer(str(run.tokenizer))
    # read as plain values: a run of an earlier version may hold keys that today's config no longer has
    config: dict[str, Any] = yaml.safe_load(run.config.read_text("utf-8"))
    teacher = {k: v for k, v in config.get("teacher", {}).items() if k in ModelConfig.model_fields}
    denoiser = load_averaged(checkpoint / "student-ema", tokenizer, ModelConfig(**teacher) if teacher else None)
    measured = config.get("evaluate") or {}
    length = measured.get("length") or (config.get("data") or {}).get("length") or config.get("length")
    origin = f"The averaged weights after {state['update']} updates of"
    if "teacher" in config:
        schedule = config["teacher"].get("process", "log-linear")
        origin += f" `{config['objective']['name']}` distillation; teacher `{config['teacher']['path']}`."
    else:
        schedule = config.get("process", "log-linear")
        origin += " masked-diffusion pretraining."
    sampler = written_sampler(measured.get("sampler"))
    return Student(denoiser, tokenizer, length or denoiser.spec.max_length, schedule, STEPS, sampler, origin)
