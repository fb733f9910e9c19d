"""A few samples to read."""

from __future__ import annotations

from distill.evaluation.reference import held_out
from distill.evaluation.sample import at_precision, draw, many_steps, sampler_of
from distill.evaluation.subject import Subject

SHOWN = 4  # samples of each model in samples.txt
SHOWN_STEPS = 8


def samples_text(subject: Subject) -> str:
    """The student's at `SHOWN_STEPS` steps or as near as its sampler can, the teacher's at ``teacher_steps``."""
    config, length, tokenizer = subject.config, subject.length, subject.tokenizer
    parts, prompts = [], None
    if subject.text is not None and subject.text.prompted:
        mask_id = next(iter(subject.models.values())).spec.mask_id
        prompts = held_out(subject.text, config.seed, SHOWN, length, tokenizer, mask_id).prompts
    for kind in ("student", "teacher"):
        if kind not in subject.models:
            continue
        model = at_precision(subject.models[kind], config.precision)
        critic = subject.critic if kind == "student" else None
        how = config if kind == "student" else many_steps(config, model)
        fewest, most = sampler_of(how, critic).fitted(model).steps_between(length)
        steps = max(fewest, min(SHOWN_STEPS, most)) if kind == "student" else config.teacher_steps
        [samples] = draw(model, how, steps, SHOWN, length, config.seed, subject.process, critic=critic, prompts=prompts)
        for number, row in enumerate(samples.texts.tokens.tolist(), 1):
            text = tokenizer.decode(row, clean_up_tokenization_spaces=False)
            parts.append(f"=== {kind}, {steps} steps, sample {number} ===\n{text}\n")
    return "\n".join(parts)
