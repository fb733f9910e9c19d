"""Which rules a task is measured with, and what tables call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.config import EvaluateConfig
from distill.generation import ROWS, at_temperature
from students.samplers import Ancestral, Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser


@dataclass(frozen=True)
class Rule:
    """A sampler, and what tables call it; ``own`` where it is ``evaluate.sampler``, at whatever temperature."""

    label: str
    sampler: Sampler
    own: bool


def rules_of(config: EvaluateConfig, is_teacher: bool) -> list[Rule]:
    """The rules of a model, none twice, each at every temperature of the task, with a name of its own.

    A teacher is sampled ancestrally where a rule asks a critic, of which it has none.
    """
    task = config.task
    assert task is not None
    more = [*task.samplers, *(task.teacher_samplers if is_teacher else [])]
    own = _tempered([config.sampler], task.temperatures, is_teacher)
    rules = [*own, *_tempered(more, task.temperatures, is_teacher)]
    rules = [rule for number, rule in enumerate(rules) if rule not in rules[:number]]
    return [Rule(_label(rule, rules), rule, rule in own) for rule in rules]


def _tempered(samplers: Sequence[Sampler], temperatures: Sequence[float], is_teacher: bool) -> list[Sampler]:
    listed = [Ancestral() if sampler.needs_critic and is_teacher else sampler for sampler in samplers]
    return [at_temperature(sampler, t) for sampler in listed for t in temperatures] if temperatures else listed


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
