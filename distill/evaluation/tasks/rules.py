"""Which rules a task is measured with, and what tables call them."""

from __future__ import annotations

from collections.abc import Sequence

from distill.config import EvaluateConfig
from distill.generation import ROWS, at_temperature
from students.samplers import Ancestral, Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser


def named_rules(config: EvaluateConfig, is_teacher: bool) -> list[tuple[str, Sampler]]:
    """The rules of a model, none twice, each at every temperature of the task, with a name of its own.

    A teacher is sampled ancestrally where a rule asks a critic, of which it has none.
    """
    task = config.task
    assert task is not None
    listed = [config.sampler, *task.samplers, *(task.teacher_samplers if is_teacher else [])]
    listed = [Ancestral() if rule.needs_critic and is_teacher else rule for rule in listed]
    rules = [at_temperature(rule, t) for rule in listed for t in task.temperatures] or listed
    distinct = [rule for number, rule in enumerate(rules) if rule not in rules[:number]]
    return [(_label(rule, distinct), rule) for rule in distinct]


def _label(rule: Sampler, rules: Sequence[Sampler]) -> str:
    """Its label, with the settings that tell it from others of the same one."""
    others = [other for other in rules if other.label == rule.label]
    differ = [name for name in type(rule).model_fields if len({repr(getattr(o, name, None)) for o in others}) > 1]
    return ", ".join([rule.label, *(f"{name.replace('_', ' ')} {getattr(rule, name)}" for name in differ)])


def fewest_steps(rule: Sampler, denoiser: Denoiser, prompts: Sequence[Sequence[int]], length: int) -> int:
    """With how many steps every prompt can be completed, at least."""
    parts = (prompts[first : first + ROWS] for first in range(0, len(prompts), ROWS))
    mask_id = denoiser.spec.mask_id
    return max(rule.fewest_steps(Canvas.prompted(part, length, mask_id), denoiser) for part in parts)
