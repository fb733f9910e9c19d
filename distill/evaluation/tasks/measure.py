"""Ask a task's questions: teacher and student, each with its rules, at every number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distill.completions import Completion, check_prompts, complete
from distill.config import EvaluateConfig
from distill.evaluation.checks import check_length, check_same_tokens
from distill.evaluation.progress import Counter, Watched
from distill.evaluation.results import ModelDescription
from distill.evaluation.sample import at_precision
from distill.evaluation.tasks.figures import accuracy_interval, accuracy_under_parallelism, difference_interval
from distill.evaluation.tasks.results import Asking, Curve, Difference, TaskEvaluation, TaskRow
from distill.evaluation.tasks.rules import Rule, fewest_steps, rules_of
from distill.evaluation.tasks.task import Task
from distill.runtime.progress import progress_bar
from distill.runtime.resources import Use, device_name, measured
from distill.runtime.world import World
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.process import MaskedProcess

Model = Literal["teacher", "student"]


@dataclass(frozen=True)
class Answers:
    """What a model wrote with one rule at one number of steps.

    Attributes:
        sampler: what tables call the rule.
        completions, scores: (N,) one a question.
        use: what writing took, all questions together.
    """

    model: Model
    sampler: str
    steps: int
    completions: list[Completion]
    scores: np.ndarray
    use: Use

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return float(self.scores.mean())

    @property
    def nfe(self) -> float:
        """Passes a question."""
        return float(np.mean([completion.nfe for completion in self.completions]))

    @property
    def length_nfe(self) -> float | None:
        """Passes before these, which found out how long the answer will be; None where nothing looked for it."""
        passes = [completion.length_nfe for completion in self.completions if completion.length_nfe is not None]
        return float(np.mean(passes)) if passes else None

    @property
    def passes(self) -> float:
        """All passes a question, those for the length too."""
        return float(np.mean([completion.passes for completion in self.completions]))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Each answer as plain values, for people who want to read them; questions are counted from 1."""
        heading = {"model": self.model, "sampler": self.sampler, "steps": self.steps}
        for number, (completion, score) in enumerate(zip(self.completions, self.scores.tolist(), strict=True), 1):
            yield {**heading, "question": number, "score": score, **asdict(completion)}


@dataclass(frozen=True)
class TaskBench:
    """What models are asked, and how.

    Attributes:
        length: L, tokens of a canvas, prompt and answer together.
        world: its processes share the questions; each has all answers.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    config: EvaluateConfig
    length: int
    process: MaskedProcess
    world: World

    def check(self, teacher: Denoiser | None, student: Denoiser | None, critic: nn.Module | None = None) -> None:
        """Refuse models that can not be asked, before any is.

        Raises:
            UserError: there is none, or two of different tokens; a canvas that is too long for them, or leaves no room
                after a prompt; too many steps, or too few for a rule; a rule without the critic that it asks.
        """
        models = [model for model in (teacher, student) if model is not None]
        if not models:
            raise UserError("there is no model to ask; give a run, a student or a teacher")
        if teacher is not None and student is not None:
            check_same_tokens(teacher, student)
        check_length(models, self.length)
        check_prompts(models[0].spec, self.task.prompts, self.length, [q.place for q in self.task.questions])
        for model, rule in self._rules("teacher", teacher):
            self._check_rule(rule, model, None)
            _check_fewest("evaluate.teacher_steps", self.config.teacher_steps, self._limits(rule, model)[0], rule)
        for model, rule in self._rules("student", student):
            self._check_rule(rule, model, critic)

    def _check_rule(self, rule: Rule, denoiser: Denoiser, critic: nn.Module | None) -> None:
        rule.sampler.check(critic)
        if rule.own:
            fewest, most = self._limits(rule, denoiser)
            _check_most("evaluate.steps", max(self.config.steps), most)
            _check_fewest("evaluate.steps", min(self.config.steps), fewest, rule)

    def _limits(self, rule: Rule, denoiser: Denoiser) -> tuple[int, int]:
        """With how many steps a rule can answer every question, at least, and at most with a token each."""
        room = self.length - min(map(len, self.task.prompts))
        fewest = fewest_steps(rule.sampler, denoiser, self.task.prompts, self.length)
        return fewest, rule.sampler.steps_between(room)[1]

    def ask(self, teacher: Denoiser | None, student: Denoiser | None, critic: nn.Module | None = None) -> list[Answers]:
        """Everything that models answer, the teacher's first. They are frozen and on the same device."""
        self.check(teacher, student, critic)
        parts = self._parts(teacher, student, critic)
        precise = {part.model: at_precision(part.denoiser, self.config.precision) for part in parts}
        answers = []
        with progress_bar() as bar:
            progress = Counter(bar, sum(map(self._passes, parts)), self.world.size)
            for part in parts:
                progress.say(f"{part.model}, {part.rule.label}, {part.steps} steps")
                answers.append(self._answers(replace(part, denoiser=Watched(precise[part.model], progress))))
                progress.finish(self._passes(part))
        return answers

    def evaluation(
        self, answers: Sequence[Answers], models: dict[str, ModelDescription], device: torch.device
    ) -> TaskEvaluation:
        """The figures of what `ask` returned.

        Args:
            models: where they came from. device: where they were asked.
        """
        rows, config = rows_of(answers), self.config
        asking = Asking(
            config.precision, self.process.schedule, self.length, config.batch, config.seed, device_name(device),
            str(torch.__version__),
        )  # fmt: skip
        return TaskEvaluation(
            models=models, task=self.task.description, asking=asking, rows=rows, curves=curves_of(rows)
        )

    def _rules(self, model: Model, denoiser: Denoiser | None) -> list[tuple[Denoiser, Rule]]:
        """The rules of a model, suited to it."""
        if denoiser is None:
            return []
        rules = rules_of(self.config, is_teacher=model == "teacher")
        return [(denoiser, replace(rule, sampler=rule.sampler.suited(denoiser))) for rule in rules]

    def _parts(self, teacher: Denoiser | None, student: Denoiser | None, critic: nn.Module | None) -> list[Part]:
        """The teacher's, then the student's, each rule's by number of steps."""
        few = sorted(set(self.config.steps))
        parts = []
        for denoiser, rule in self._rules("teacher", teacher):
            steps = [n for n in few if n != self.config.teacher_steps]
            steps = sorted([*self._possible(rule, denoiser, steps), self.config.teacher_steps])
            parts += [Part("teacher", denoiser, None, rule, n) for n in steps]
        for denoiser, rule in self._rules("student", student):
            parts += [Part("student", denoiser, critic, rule, n) for n in self._possible(rule, denoiser, few)]
        return parts

    def _possible(self, rule: Rule, denoiser: Denoiser, steps: list[int]) -> list[int]:
        """Those of the steps that the rule can make."""
        fewest, most = self._limits(rule, denoiser)
        return [n for n in steps if fewest <= n <= most]

    def _passes(self, part: Part) -> int:
        """The most rows that may go through the network."""
        return len(self.task.questions) * part.rule.sampler.most_passes(self.length, part.steps)

    def _answers(self, part: Part) -> Answers:
        def work() -> list[Completion]:
            return complete(
                part.denoiser, self.tokenizer, self.task.prompts, self.length, part.rule.sampler, part.steps,
                self.config.seed, self.config.batch, self.process, part.critic, self.world,
            )  # fmt: skip

        completions, use = measured(self.world, part.denoiser, work)
        scores = self.world.on_main(lambda: self.task.scores(completions))
        return Answers(part.model, part.rule.label, part.steps, completions, np.array(scores), use)


def _check_most(setting: str, steps: int, most: int) -> None:
    if steps > most:
        raise UserError(
            f"{setting} has {steps}, more steps than the {most} tokens that can be written after the shortest prompt, "
            f"or in a block where steps are of each; leave out steps above {most} (teacher_steps may exceed it), or "
            "set a larger evaluate.length"
        )


def _check_fewest(setting: str, steps: int, fewest: int, rule: Rule) -> None:
    if steps < fewest:
        raise UserError(
            f"{setting} has {steps}, but sampler {rule.label!r} needs at least {fewest}, one for each block of the "
            "longest answer; give more, or set a larger block_length or budget: block"
        )


@dataclass(frozen=True)
class Part:
    """A model to be asked with one rule at one number of steps."""

    model: Model
    denoiser: Denoiser
    critic: nn.Module | None
    rule: Rule
    steps: int


# --- figures -------------------------------------------------------------------------------------------------------


def rows_of(answers: Sequence[Answers]) -> tuple[TaskRow, ...]:
    """A row of figures for each."""
    teacher = [part for part in answers if part.model == "teacher"]
    return tuple(_row(part, teacher) for part in answers)


def _row(part: Answers, teacher: Sequence[Answers]) -> TaskRow:
    nfe = np.array([completion.nfe for completion in part.completions])
    tokens = np.array([completion.tokens for completion in part.completions])
    median, p95 = np.quantile(nfe, [0.5, 0.95])
    most = max((other.steps for other in teacher), default=0)
    return TaskRow(
        model=part.model,
        sampler=part.sampler,
        steps=part.steps,
        nfe=part.nfe,
        nfe_median=float(median),
        nfe_p95=float(p95),
        critic_nfe=float(np.mean([completion.critic_nfe for completion in part.completions])),
        length_nfe=part.length_nfe,
        accuracy=part.accuracy,
        accuracy_ci=accuracy_interval(part.scores),
        tokens=float(tokens.mean()),
        tpf=float(tokens.mean() / part.passes),
        ended=float(np.mean([completion.ended for completion in part.completions])),
        seconds=part.use.seconds / len(part.completions),
        passes=part.use.passes,
        peak_host_bytes=part.use.peak_host_bytes,
        peak_device_bytes=part.use.peak_device_bytes,
        to_full=_difference(part, [other for other in teacher if other.steps == most]),
        to_same=_difference(part, [other for other in teacher if other.passes <= part.passes]),
    )


def _difference(part: Answers, teacher: Sequence[Answers]) -> Difference | None:
    """To the best of some of the teacher's rows, and of equally good ones to that with the fewest passes."""
    if part.model == "teacher" or not teacher:
        return None
    best = min(teacher, key=lambda other: (-other.accuracy, other.passes))
    return Difference(
        sampler=best.sampler,
        steps=best.steps,
        nfe=best.nfe,
        accuracy=best.accuracy,
        difference=part.accuracy - best.accuracy,
        difference_ci=difference_interval(part.scores, best.scores),
    )


def curves_of(rows: Sequence[TaskRow]) -> tuple[Curve, ...]:
    """The `accuracy_under_parallelism` of each model with each rule, against the best accuracy of all rows."""
    best = 100 * max(row.accuracy for row in rows)
    names = dict.fromkeys((row.model, row.sampler) for row in rows)
    return tuple(
        Curve(model, sampler, accuracy_under_parallelism(_points(rows, model, sampler), best))
        for model, sampler in names
    )


def _points(rows: Sequence[TaskRow], model: str, sampler: str) -> list[tuple[float, float]]:
    return [(row.tpf, 100 * row.accuracy) for row in rows if (row.model, row.sampler) == (model, sampler)]
