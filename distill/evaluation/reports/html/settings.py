"""How it all was made: models, sampling, judge, versions and cost."""

from __future__ import annotations

from distill.evaluation.results import Evaluation
from distill.evaluation.tasks.results import TaskEvaluation
from distill.pages.blocks import Facts
from distill.runtime.cost import Cost
from distill.runtime.run_folder import flatten


def setting_facts(evaluation: Evaluation) -> Facts:
    """What was measured, how, and on what."""
    sampling, judge = evaluation.sampling, evaluation.judge
    facts = [
        (name, f"{model.name}, {model.parameters / 1e6:,.1f} M parameters")
        for name, model in (evaluation.models or {}).items()
    ]
    facts += [
        ("judge", f"{judge.name}, {judge.parameters / 1e6:,.1f} M parameters"),
        ("samples of a row", sampling.size),
        ("sampler", sampling.sampler),
        *(
            (f"sampler: {name}", f"{value}")
            for name, value in flatten(sampling.sampler_settings).items()
            if value is not None
        ),
        ("draws", sampling.draw),
        ("precision", sampling.precision),
        ("noise schedule", sampling.process),
        ("seed", f"{sampling.seed}"),
        ("bootstrap resamples", f"{sampling.bootstrap:,}"),
        ("device", sampling.device),
        ("torch", sampling.torch),
    ]
    return Facts(tuple(facts))


def task_facts(evaluation: TaskEvaluation) -> Facts:
    """How a task was asked, and on what."""
    task, asking = evaluation.task, evaluation.asking
    return Facts(
        (
            (f"task {task.name}", f"{task.questions:,} questions of {task.file}, checked by {task.checker}"),
            ("canvas", f"{asking.length} tokens, {asking.precision}"),
            ("seed", f"{asking.seed}"),
            ("device", asking.device),
            ("torch", asking.torch),
        )
    )


def cost_facts(name: str, cost: Cost) -> Facts:
    """What something took."""
    facts = [
        (name, f"{cost.seconds:,.0f} s, {cost.hours} on {' and '.join(cost.devices)}"),
        *(
            (f"{name}: {model} passes", f"{count:,}")
            for model, count in (
                ("teacher", cost.teacher_passes), ("student", cost.student_passes), ("critic", cost.critic_passes),
            )
            if count
        ),
        (f"{name}: tokens", f"{cost.tokens:,}"),
        (f"{name}: memory at most", cost.memory),
        (f"{name}: seeds", ", ".join(map(str, cost.seeds))),
        (f"{name}: updates", f"{cost.updates:,}" if cost.updates else ""),
        *((f"{name}: {package}", version) for package, version in cost.versions.items()),
    ]  # fmt: skip
    return Facts(tuple((label, value) for label, value in facts if value))
