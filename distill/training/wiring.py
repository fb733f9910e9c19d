"""The objective of a run on its networks: on whole rows, or on the blocks that its student writes in."""

from __future__ import annotations

from dataclasses import replace

from distill.config import DistillConfig
from objectives.blocks import InBlocks
from objectives.objective import Distillation, Objective
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError


def wired(config: DistillConfig, distillation: Distillation) -> Objective:
    """The objective with networks of its own; in blocks where the student writes in them.

    Args:
        config: of `in_own_blocks`.

    Raises:
        UserError: it can not be built for these networks, or not with the text that is to be before blocks.
    """
    size = distillation.student.spec.block_size
    return config.objective.build(distillation) if size is None else _on_blocks(config, distillation, size)


def _on_blocks(config: DistillConfig, whole: Distillation, size: int) -> InBlocks:
    """The objective on blocks of ``size`` tokens, whose first ones behind nothing stand for all in measurements."""
    length = min(size, whole.length)
    objective = config.objective.build(replace(whole, length=length, prompted=None))
    try:
        config.blocks.check(config.objective, objective.needs, config.data is not None)
    except ValueError as error:
        raise UserError(str(error)) from error
    blocks = InBlocks(objective, config.blocks, whole, config.objective.most_steps)
    writes = blocks.needs in ("written rows", "trajectories") or (blocks.needs == "rows" and config.data is None)
    if writes and config.teacher_sample_steps < whole.length // length:
        raise UserError(
            f"teacher_sample_steps is {config.teacher_sample_steps}, but the teacher writes rows of "
            f"{whole.length // length} blocks of {length} tokens; set it to at least one a block"
        )
    return blocks


def has_other_blocks(student: DenoiserSpec, teacher: DenoiserSpec) -> bool:
    """Whether a student has blocks of its own; critics that are copies start as it then, to read as it does."""
    return student.block_size not in (None, teacher.block_size)
