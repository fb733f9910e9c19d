"""What an evaluation samples: each model at each number of steps, as it is, as engines serve it and as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from distill.config import EvaluateConfig
from distill.config.protocols import PROTOCOLS
from distill.evaluation.sample import as_served, at_precision, many_steps, sampler_of, temperatures_of
from students.samplers import SERVED, Sampler
from teachers.denoiser import Denoiser


@dataclass(frozen=True)
class Part:
    """A model to be sampled at one number of steps, in the precision to do so, and how; or an engine's name for it.

    Attributes:
        temperatures: each makes a row.
        kind: of the rows: the evaluation's own, as an engine serves, or as a paper measures.
    """

    name: str
    denoiser: Denoiser
    critic: nn.Module | None
    steps: int
    config: EvaluateConfig
    temperatures: tuple[float, ...]
    kind: Literal["own", "served", "published"] = "own"

    def passes(self, length: int) -> int:
        """The most rows that may go through a network, the judge's included."""
        return len(self.temperatures) * self.config.samples * (self.sampler.most_passes(length, self.steps) + 1)

    @property
    def sampler(self) -> Sampler:
        """Fitted to the model."""
        return sampler_of(self.config, self.critic).fitted(self.denoiser)


def parts_of(
    teacher: Denoiser | None, student: Denoiser | None, config: EvaluateConfig, critic: nn.Module | None
) -> list[Part]:
    """What `evaluate` samples, in the order of its rows."""
    parts = []
    for name, model, asked in (("teacher", teacher, None), ("student", student, critic)):
        if model is None:
            continue
        denoiser = at_precision(model, config.precision)
        settings = dict.fromkeys(config.steps, config)
        if name == "teacher":
            settings.setdefault(config.teacher_steps, many_steps(config, denoiser))
        for steps in sorted(settings):
            how, is_reference = settings[steps], name == "teacher" and steps not in config.steps
            if is_reference and config.teacher_samples is not None:
                how = how.model_copy(update={"samples": min(config.teacher_samples, config.samples)})
            temperatures = temperatures_of(config, sampler_of(how, asked), is_reference)
            parts.append(Part(name, denoiser, asked, steps, how, temperatures))
    return parts


def cheapest_first(parts: Sequence[Part], length: int) -> list[int]:
    """The numbers of parts as they are best sampled by whoever waits: few passes first, the student's before others."""
    return sorted(range(len(parts)), key=lambda n: (parts[n].passes(length), parts[n].name != "student"))


def served_parts(student: Denoiser, config: EvaluateConfig) -> list[Part]:
    """A student as inference engines sample from it: those serve blocks of attention, without a shift or a time."""
    spec = student.spec
    if spec.attention != "block" or spec.shift or spec.time_conditioned:
        return []
    settings = {engine: as_served(config, engine, student) for engine in SERVED}
    denoiser = at_precision(student, config.precision)
    return [
        Part(engine, denoiser, None, steps, how, (how.sampler.temperature,), "served")
        for engine, (how, steps) in settings.items()
    ]


def published_parts(parts: Sequence[Part], config: EvaluateConfig) -> list[Part]:
    """The evaluation's own parts once more, at one temperature and as ``config.protocol`` samples and judges."""
    if config.protocol is None:
        return []
    how, published = PROTOCOLS[config.protocol], []
    for part in parts:
        if part.kind == "own":
            sampler = part.config.sampler if how.sampler is None else how.sampler
            changed = part.config.model_copy(update={"sampler": sampler, "end_of_text": how.end_of_text})
            published.append(replace(part, config=changed, temperatures=(sampler.temperature,), kind="published"))
    return published
