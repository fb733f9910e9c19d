"""What a run's config says once it is known that its student writes in blocks."""

from __future__ import annotations

from typing import Any

from distill.config.schema import DistillConfig
from distill.runtime.run_folder import flatten
from objectives.objective import Surroundings
from students.samplers import Sampler
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError


def in_own_blocks(config: DistillConfig, student: DenoiserSpec, teacher: DenoiserSpec | None = None) -> DistillConfig:
    """The config of a run whose student has this attention: samplers write in its blocks, and steps are a block's.

    A student that looks at whole rows leaves it as it is.

    Args:
        teacher: to be checked as well; None where it was.

    Raises:
        UserError: rows, sampler, steps or teacher do not fit the blocks, or there are none to be asked for.
    """
    size = student.block_size
    if student.attention != "block" or size is None:
        if config.blocks.prefix != "data":
            raise UserError(
                f"blocks.prefix is {config.blocks.prefix!r}, but the student looks at whole rows; set blocks.size, or "
                "leave it out"
            )
        return config
    if config.sequence_length > size and config.sequence_length % size:
        raise UserError(
            f"rows have {config.sequence_length} tokens, no multiple of the student's blocks of {size}; change "
            "data.length, or blocks.size"
        )
    if teacher is not None and teacher.attention == "block" and (teacher.block_size or size) % size:
        raise UserError(
            f"the student has blocks of {size} tokens and the teacher of {teacher.block_size}, which reads no noise in "
            f"earlier blocks; set blocks.size to a divisor of {teacher.block_size}"
        )
    return with_blocks(config, min(size, config.sequence_length))


def with_blocks(config: DistillConfig, size: int) -> DistillConfig:
    """The same with samplers that write in blocks of ``size`` tokens.

    Raises:
        UserError: they can not, or in others; or the objective takes more steps than a block has tokens.
    """
    sampler, measured = config.sampler, config.evaluate.sampler
    same = measured == sampler
    sampler = _blocked(sampler, size, "sampler")
    if not measured.whole:  # one that reads whole texts measures something else
        measured = sampler if same else _blocked(measured, size, "evaluate.sampler")
    optimizers = {"student"} if config.train.critic is None else {"student", "critic"}
    try:
        config.objective.check(Surroundings(size, sampler, measured, frozenset(optimizers)))
    except ValueError as error:
        raise UserError(f"{error} (a row is a block, and steps are those of each)") from error
    evaluate = config.evaluate.model_copy(update={"sampler": measured})
    return config.model_copy(update={"sampler": sampler, "evaluate": evaluate})


def _blocked(sampler: Sampler, size: int, section: str) -> Sampler:
    if sampler.whole:
        raise UserError(
            f"{section} is {sampler.label!r}, which reads whole texts, but the student writes blocks of {size}; "
            "choose another sampler"
        )
    if sampler.block_length not in (None, "attention", size):
        raise UserError(
            f"{section}.block_length is {sampler.block_length}, but the student writes, and is trained in, blocks of "
            f"{size}; set it to {size}, or blocks.size to {sampler.block_length}"
        )
    return sampler.model_copy(update={"block_length": size, "budget": "block"})


def as_recorded(config: DistillConfig, recorded: dict[str, Any]) -> DistillConfig:
    """The config of a run that goes on, with the blocks that it was started with.

    Args:
        recorded: the config in its folder.
    """
    started = flatten(recorded)
    size = started.get("sampler.block_length")
    if started.get("sampler.budget") != "block" or not isinstance(size, int):
        return config
    return with_blocks(config, size)
