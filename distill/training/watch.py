"""Collapse is watched: the averaged student's quality and entropies, while training, against the teacher's own.

The loss does not show collapse and unigram entropy shows it late, so bigram entropy decides. A student that writes less
varied text has a lower perplexity by that alone. So the teacher is measured at several temperatures, once, its
perplexity is told where its entropy is the student's, and checkpoints are compared by how far they are from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill.config import DistillConfig
from distill.evaluation.checks import check_judge
from distill.evaluation.evaluate import quick_figures
from distill.evaluation.frontier import reaches, reading
from distill.evaluation.judge import load_judge
from distill.evaluation.reference import held_out, reference_text
from distill.evaluation.results import Axis
from distill.evaluation.sample import at_precision, sampler_of, temperatures_of
from distill.runtime.messages import say
from distill.runtime.world import World
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess


class CollapseWatch:
    """Called by the loop; see `distill.training.loop.Watch`.

    The best checkpoint is the one that the objective ranks first (`ObjectiveConfig.ranks`) among those whose bigram
    entropy is at least ``evaluate.entropy_floor`` of the teacher's at the same step count. Below ``evaluate.collapse``
    of it the run stops.

    Attributes:
        reference: what the objective ranks by comparison with, such as the student's start; see `Objective.reference`.
    """

    reference: Denoiser | None = None

    def __init__(self, config: DistillConfig, teacher: Denoiser, tokenizer: PreTrainedTokenizerBase, world: World):
        self.config, self.objective, self.teacher, self.world = config.evaluate, config.objective, teacher, world
        self.together = config.teacher.placement == "sharded"  # its passes need all processes
        self.length, self.process = config.sequence_length, MaskedProcess(config.teacher.process)
        self.seed = config.train.seed
        self.judge = load_judge(config.evaluate.judge, tokenizer, config.evaluate.retokenize, world.device)
        self.prompts = self._held_out_prompts(config, tokenizer)

    def __call__(
        self, update: int, average: Denoiser | None, state: dict[str, Any]
    ) -> tuple[dict[str, float], bool, str | None]:
        """Measure on the main process; keep in ``state`` what a resumed run needs."""
        if "teacher_curve" not in state and (self.world.is_main or self.together):
            sampler = sampler_of(self.config, critic=None)
            temperatures = temperatures_of(self.config, sampler, is_reference=False)
            state["teacher_curve"] = self._figures(self.teacher, temperatures)
            state["teacher"] = state["teacher_curve"][temperatures.index(sampler.temperature)]
        if self.reference is not None and "start" not in state and self.world.is_main:
            [state["start"]] = self._figures(self.reference)
        result = self._measure(update, average, state) if average is not None else None
        metrics, best, stopped, now = self.world.broadcast(result)
        state.update(now)
        return metrics, best, stopped

    def _held_out_prompts(self, config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> Canvas | None:
        """What samples are written after; None where the data have no prompts."""
        text = reference_text(config, tokenizer)
        if text is None or not text.prompted:
            return None
        check_judge(self.judge)
        samples, mask_id = self.config.watch_samples, self.teacher.spec.mask_id
        return held_out(text, self.seed, samples, self.length, tokenizer, mask_id).prompts

    def _figures(self, denoiser: Denoiser, temperatures: Sequence[float] | None = None) -> list[dict[str, float]]:
        config = self.config
        return quick_figures(
            at_precision(denoiser, config.precision),
            self.judge,
            config.watch_steps,
            config.watch_samples,
            self.length,
            self.seed,
            self.process,
            config,
            self.prompts,
            temperatures,
        )

    def _measure(
        self, update: int, average: Denoiser, state: dict[str, Any]
    ) -> tuple[dict[str, float], bool, str | None, dict[str, Any]]:
        state = dict(state)
        teacher, curve, [student] = state["teacher"], state["teacher_curve"], self._figures(average)
        as_varied = perplexity_as_varied(student, curve)
        start = at_equal_entropy(state["start"], curve) if self.reference is not None else None
        student = at_equal_entropy(student, curve)
        # one token after each prompt has no bigram to lose
        kept = student["bigram_entropy"] / teacher["bigram_entropy"] if teacher["bigram_entropy"] else 1.0
        best, stopped = False, None
        rank = self.objective.ranks(student, start)
        if kept >= self.config.entropy_floor and rank is not None and rank < state.get("best", math.inf):
            best, state["best"] = True, rank
        if kept < self.config.collapse:
            stopped = (
                f"collapse at update {update}: bigram entropy {student['bigram_entropy']:.3f} is {kept:.1%} of the "
                f"teacher's {teacher['bigram_entropy']:.3f} (evaluate.collapse is {self.config.collapse:.0%}); the "
                "best checkpoint stays marked; lower train.student.lr or train fewer updates"
            )
        say(
            f"update {update}: judge perplexity {student['judge_perplexity']:.2f} at {self.config.watch_steps} steps "
            f"(teacher {teacher['judge_perplexity']:.2f}{_told(as_varied)}), bigram entropy "
            f"{student['bigram_entropy']:.3f} ({teacher['bigram_entropy']:.3f}), at equal entropy "
            f"{student['relative_perplexity']:.2f} of the teacher's perplexity{_passes(student, start)}"
            f"{', best so far' if best else ''}",
        )
        metrics = {f"watch/{k}": v for k, v in student.items()} | {f"watch/teacher_{k}": v for k, v in teacher.items()}
        metrics |= {f"watch/teacher_at_{axis}_entropy": value for axis, value in as_varied.items()}
        if start is not None:
            metrics |= {f"watch/start_{k}": v for k, v in start.items()}
        return metrics, best, stopped, state


def perplexity_as_varied(student: dict[str, float], curve: Sequence[dict[str, float]]) -> dict[Axis, float]:
    """The teacher's perplexity where its entropy is the student's, for each axis on which its curve reaches that.

    Args:
        student: see `quick_figures`. curve: the teacher's, at each temperature.
    """
    out: dict[Axis, float] = {}
    for axis in get_args(Axis):
        at, entropies = student[f"{axis}_entropy"], [figures[f"{axis}_entropy"] for figures in curve]
        if reaches(entropies, at):
            logs = np.log([[figures["judge_perplexity"]] for figures in curve])
            out[axis] = float(np.exp(reading(np.array(entropies)[:, None], logs, np.array([at])))[0])
    return out


def at_equal_entropy(figures: dict[str, float], curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures, and ``relative_perplexity``: of that of a teacher as varied, on the axis that claims less.

    The teacher's log-perplexity over its entropy is taken as a line, by least squares through its temperatures, since
    checkpoints must be compared whatever their entropies are. Beyond either end it goes as far as the ends are apart.

    Args:
        figures: see `quick_figures`. curve: the teacher's, at each temperature; one is a level line.
    """
    logs = np.log([at["judge_perplexity"] for at in curve])
    excess = []
    for axis in get_args(Axis):
        entropies = np.array([at[f"{axis}_entropy"] for at in curve])
        low, high, middle = entropies.min(), entropies.max(), entropies.mean()
        spread = ((entropies - middle) ** 2).sum()
        slope = (entropies - middle) @ logs / spread if spread > 0 else 0.0
        at = np.clip(figures[f"{axis}_entropy"], 2 * low - high, 2 * high - low)
        excess.append(math.log(figures["judge_perplexity"]) - logs.mean() - slope * (at - middle))
    return figures | {"relative_perplexity": math.exp(max(excess))}


def _passes(student: dict[str, float], start: dict[str, float] | None) -> str:
    if start is None:
        return ""
    return f", {student['nfe']:.1f} passes (start {start['nfe']:.1f}, perplexity {start['judge_perplexity']:.2f})"


def _told(as_varied: dict[Axis, float]) -> str:
    return "".join(f", {value:.2f} at the student's {axis} entropy" for axis, value in as_varied.items())
