"""`fewstep evaluate`: what to load, and the files that the measurement becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, DistillConfig, EvaluateConfig, apply_override, load_config, validate
from distill.config.precision import faster_precision, settled
from distill.data.corpus import load_corpus
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.evaluate import at_precision, check, draw, evaluate, many_steps
from distill.evaluation.judge import load_judge
from distill.evaluation.report import plot_evaluation, print_table
from distill.models import load_averaged, load_discriminator, load_named, load_teacher
from distill.runtime.messages import say
from distill.runtime.run_folder import RunFolder, check_new_folder, new_folder
from distill.runtime.world import World, start_world
from distill.training.checkpoint import best_checkpoint, verify_checkpoint
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.files import publish
from teachers.process import MaskedProcess

SHOWN = 4  # samples of each model in samples.txt
SHOWN_STEPS = 8


def evaluate_command(
    run: Path | None,
    student: str | None = None,
    teacher: str | None = None,
    judge: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    overrides: list[str] = (),  # type: ignore[assignment]
) -> Path:
    """Evaluate a run's best checkpoint against its teacher, or any student and teacher against each other.

    Writes ``evaluation.json``, ``evaluation.png`` and ``samples.txt`` into the run, or into the new folder ``out``: the
    main process does, where a launcher started several, which share the sampling and the judging.

    Args:
        run: a distillation's folder; it says which teacher, student, tokenizer, judge and text.
        student, teacher: folders or names, instead of ``run``; one of them may be left out.
        judge, data: override ``evaluate.judge`` and ``evaluate.data``.
        overrides: ``key=value`` of the `EvaluateConfig` section, e.g. ``samples=64``.

    Returns:
        The path of ``evaluation.json``.
    """
    world = start_world()
    overrides = [o.removeprefix("evaluate.") for o in overrides]
    overrides += [
        f"{key}={json.dumps(value)}" for key, value in (("judge", judge), ("data", data)) if value is not None
    ]
    if run is not None and (student or teacher):
        raise UserError(f"run {run} names its own student and teacher; leave out --student and --teacher, or the run")
    if run is None and out is None:
        raise UserError("there is no run to write the evaluation into; name a new folder with --out")
    if out is not None:
        world.on_main(lambda: check_new_folder(out))
    if run is not None:
        found = _from_run(RunFolder.open(run), overrides, world)
    else:
        found = _from_names(student, teacher, overrides, world)
    config, models, names, tokenizer, process, text, critic = found
    length = config.length or (text.length if text else min(m.spec.max_length for m in models.values()))
    models = {kind: model.requires_grad_(False).eval().to(world.device) for kind, model in models.items()}
    critic = critic.to(world.device) if critic is not None else None
    reader = load_judge(config.judge, tokenizer, config.retokenize, world.device)
    pair = models.get("teacher"), models.get("student")
    check(*pair, reader, config, length, None, critic)
    reference = reference_rows(text, config, length, tokenizer) if text else None
    # again, with the text, and still before there is a folder
    check(*pair, reader, config, length, reference, critic)
    folder = world.on_main(lambda: new_folder(out)) if out is not None else RunFolder(run).path  # type: ignore[arg-type]
    result = evaluate(*pair, reader, config, length, reference, config.seed, process, critic, world)
    described = {k: {"name": names[k], "parameters": sum(p.numel() for p in m.parameters())} for k, m in models.items()}
    result = {"models": described, **result}
    path = folder / "evaluation.json"

    def write() -> None:
        publish(path, json.dumps(result, indent=1) + "\n")
        plot_evaluation(result, folder / "evaluation.png")
        publish(folder / "samples.txt", _samples_text(models, config, length, tokenizer, process, critic))
        print_table(result)
        say(f"written: {path}, evaluation.png and samples.txt")

    world.on_main(write)
    world.finish()
    return path


Found = tuple[
    EvaluateConfig, dict[str, Denoiser], dict[str, str], PreTrainedTokenizerBase, MaskedProcess, DataConfig | None,
    nn.Module | None,
]  # fmt: skip


def _from_run(run: RunFolder, overrides: list[str], world: World) -> Found:
    def find() -> tuple[DistillConfig, Path]:
        config = settled(load_config(DistillConfig, run.config, [f"evaluate.{o}" for o in overrides]))
        checkpoint = best_checkpoint(run)
        if checkpoint is None:
            raise UserError(
                f"run {run.path} has no checkpoint yet; let it train until it has saved one, then evaluate again"
            )
        verify_checkpoint(checkpoint)
        return config, checkpoint

    config, checkpoint = world.on_main(find)
    tokenizer = load_tokenizer(str(run.tokenizer))
    models: dict[str, Denoiser] = {
        "teacher": load_teacher(config.teacher)[0],
        "student": load_averaged(checkpoint / "student-ema", tokenizer, config.teacher),
    }
    names = {"teacher": config.teacher.path, "student": str(checkpoint / "student-ema")}
    evaluation, text = config.evaluate, reference_text(config, tokenizer)
    if evaluation.length is None:
        evaluation = evaluation.model_copy(update={"length": config.sequence_length})
    critic = None
    if evaluation.sampler.needs_critic:
        critic = load_discriminator(config, checkpoint, models["teacher"], models["student"])
    return evaluation, models, names, tokenizer, MaskedProcess(config.teacher.process), text, critic


def _from_names(student: str | None, teacher: str | None, overrides: list[str], world: World) -> Found:
    values: dict[str, Any] = {}
    for override in overrides:
        apply_override(EvaluateConfig, values, override)
    config = validate(EvaluateConfig, values)
    if config.precision == "auto":
        config = config.model_copy(update={"precision": world.on_main(faster_precision)})
    names = {kind: name for kind, name in (("teacher", teacher), ("student", student)) if name}
    if not names:
        raise UserError("there is nothing to evaluate; give a run folder, or --student and/or --teacher")
    models, tokenizer = load_named(names)
    text = None
    if config.data is not None:
        length = config.length or min(m.spec.max_length for m in models.values())
        text = _heldout(config.data, length, tokenizer)
    return config, models, names, tokenizer, MaskedProcess(), text, None


def _heldout(path: str, length: int, tokenizer: PreTrainedTokenizerBase) -> DataConfig:
    """Text that no config describes: a tokenizer without an end-of-text token is one whose documents are whole rows."""
    return DataConfig(path=path, heldout=path, length=length, pack=tokenizer.eos_token_id is not None)


def reference_text(config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> DataConfig | None:
    """Where held-out real text is for a distillation's evaluation; None where there is no text at all."""
    name, text = config.evaluate.data, config.data
    if name is None:
        return text
    shape = text or _heldout(name, config.sequence_length, tokenizer)
    return shape.model_copy(update={"path": name, "heldout": name})


def reference_rows(text: DataConfig, config: EvaluateConfig, length: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Held-out rows, at most ``config.samples``, none twice."""
    text = text.model_copy(update={"length": length})
    if text.heldout is not None:
        corpus = load_corpus(text, tokenizer, text.heldout)
    else:
        corpus = load_corpus(text, tokenizer).split(text.heldout_fraction)[1]
    return corpus.batch(config.seed, range(min(config.samples, corpus.rows)))


def _samples_text(
    models: dict[str, Denoiser],
    config: EvaluateConfig,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    process: MaskedProcess,
    critic: nn.Module | None,
) -> str:
    """A few samples to read: the student at 8 steps, the teacher at ``teacher_steps``."""
    parts = []
    few, many = min(SHOWN_STEPS, length), config.teacher_steps
    for kind, steps, how in (("student", few, config), ("teacher", many, many_steps(config))):
        if kind not in models:
            continue
        model = at_precision(models[kind], config.precision)
        asked = critic if kind == "student" else None
        drawn = draw(model, how, steps, SHOWN, length, config.seed, process, critic=asked)
        for number, row in enumerate(drawn.tokens.tolist(), 1):
            text = tokenizer.decode(row, clean_up_tokenization_spaces=False)
            parts.append(f"=== {kind}, {steps} steps, sample {number} ===\n{text}\n")
    return "\n".join(parts)
