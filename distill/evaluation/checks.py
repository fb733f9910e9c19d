"""What an evaluation can not measure is refused, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distill.config import EvaluateConfig
from distill.config.protocols import PROTOCOLS
from distill.evaluation.judge import AnyJudge, ExactJudge
from distill.evaluation.sample import many_steps, sampler_of
from students.samplers import Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.errors import UserError


def check(
    teacher: Denoiser | None,
    student: Denoiser | None,
    judge: AnyJudge,
    config: EvaluateConfig,
    length: int,
    reference: Tensor | None,
    critic: nn.Module | None = None,
    prompts: Canvas | None = None,
) -> None:
    """Refuse what `evaluate` can not measure, before anything is sampled."""
    config.sampler.check(critic)
    models = [model for model in (teacher, student) if model is not None]
    if not models:
        raise UserError("there is no model to evaluate; give a run, a student or a teacher")
    if teacher is not None and student is not None:
        check_same_tokens(teacher, student)
    check_length(models, length)
    named = {"teacher": teacher, "student": student}
    _check_steps({name: m for name, m in named.items() if m is not None}, config, length, critic, prompts)
    if not judge.retokenized and length > judge.max_length:
        raise UserError(
            f"samples have {length} tokens but judge {judge.name!r} reads at most {judge.max_length}; "
            "set a smaller evaluate.length, or a judge with a longer context"
        )
    _check_protocol(models, judge, config)
    if prompts is not None:
        check_judge(judge)
    elif reference is not None:
        _check_reference(reference, config.samples, length)


def _check_protocol(models: Sequence[Denoiser], judge: AnyJudge, config: EvaluateConfig) -> None:
    protocol = None if config.protocol is None else PROTOCOLS[config.protocol]
    ends = config.end_of_text if protocol is None else protocol.end_of_text
    if ends == "first" and isinstance(judge, ExactJudge):
        raise UserError(
            f"judge {judge.name!r} is an exact source, which scores whole rows, and here only the first end-of-text "
            "token of a text counts; set evaluate.end_of_text=all and no protocol, or an autoregressive judge"
        )
    if protocol is not None and protocol.sampler is not None:
        for model in models:
            protocol.sampler.suited(model)


def _check_steps(
    models: dict[str, Denoiser], config: EvaluateConfig, length: int, critic: nn.Module | None, prompts: Canvas | None
) -> None:
    for name, model in models.items():
        sampler = sampler_of(config, critic).suited(model)
        most = sampler.steps_between(length)[1]
        if max(config.steps) > most:
            what = "sample" if sampler.budget == "text" else "block"
            raise UserError(
                f"evaluate.steps has {max(config.steps)}, more steps than the {most} tokens of a {what}; "
                f"leave out steps above {most} (teacher_steps may exceed it)"
            )
        _check_fewest("steps", min(config.steps), sampler, model, length, prompts)
        if name == "teacher":
            many = many_steps(config, model).sampler.fitted(model)
            _check_fewest("teacher_steps", config.teacher_steps, many, model, length, prompts)


def _check_fewest(key: str, steps: int, sampler: Sampler, model: Denoiser, length: int, prompts: Canvas | None) -> None:
    fewest = sampler.steps_between(length)[0] if prompts is None else sampler.fewest_steps(prompts, model)
    if steps < fewest:
        raise UserError(
            f"evaluate.{key} has {steps}, fewer steps than the {fewest} blocks of {sampler.block_length} tokens of a "
            f"sample; set it to {fewest} or more, or sampler.budget=block, which counts the steps of each block"
        )


def check_judge(judge: AnyJudge) -> None:
    """Refuse a judge that can not score what is written after prompts."""
    if isinstance(judge, ExactJudge):
        raise UserError(
            f"judge {judge.name!r} is an exact source, which scores whole rows and not what follows a prompt; set "
            "evaluate.judge to an autoregressive model"
        )


def check_same_tokens(teacher: Denoiser, student: Denoiser) -> None:
    """Refuse two models of which one does not write the other's tokens."""
    theirs, ours = teacher.spec, student.spec
    if (theirs.vocabulary, theirs.mask_id) != (ours.vocabulary, ours.mask_id):
        raise UserError(
            f"teacher and student have {theirs.vocabulary} and {ours.vocabulary} tokens, masks "
            f"{theirs.mask_id} and {ours.mask_id}; give a student that was made from this teacher"
        )


def check_length(models: Sequence[Denoiser], length: int) -> None:
    """Refuse rows that are longer than one of the models takes."""
    context = min(model.spec.max_length for model in models)
    if length > context:
        raise UserError(f"evaluate.length is {length} but the model takes at most {context} tokens; set a smaller one")


def _check_reference(reference: Tensor, samples: int, length: int) -> None:
    if len(reference) < samples:
        raise UserError(
            f"evaluate.samples is {samples} but the held-out text has {len(reference)} rows of {length} tokens, "
            f"not as many; set evaluate.samples={len(reference)} or fewer, or give more text in evaluate.data"
        )
    if reference.shape[1] != length:
        raise UserError(
            f"held-out rows have {reference.shape[1]} tokens, samples {length}; give rows of {length} tokens"
        )
