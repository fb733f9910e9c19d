"""Collapse is watched: the averaged student's quality and entropies, while training, against the teacher's own.

The loss does not show collapse and unigram entropy shows it late, so bigram entropy decides. A student that writes less
varied text has a lower perplexity by that alone. So the teacher is measured at several temperatures, once, and its
perplexity is told where its entropy is the student's.
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
        teacher, [student] = state["teacher"], self._figures(average)
        as_varied = perplexity_as_varied(student, state["teacher_curve"])
        # one token after each prompt has no bigram to lose
        kept = student["bigram_entropy"] / teacher["bigram_entropy"] if teacher["bigram_entropy"] else 1.0
        best, stopped = False, None
        rank = self.objective.ranks(student, state.get("start"))
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
            f"{student['bigram_entropy']:.3f} ({teacher['bigram_entropy']:.3f}){self._passes(student, state)}"
            f"{', best so far' if best else ''}",
        )
        metrics = {f"watch/{k}": v for k, v in student.items()} | {f"watch/teacher_{k}": v for k, v in teacher.items()}
        metrics |= {f"watch/teacher_at_{axis}_entropy": value for axis, value in as_varied.items()}
        if self.reference is not None:
            metrics |= {f"watch/start_{k}": v for k, v in state["start"].items()}
        return metrics, best, stopped, state

    def _passes(self, student: dict[str, float], state: dict[str, Any]) -> str:
        if self.reference is None:
            return ""
        start = state["start"]
        return f", {student['nfe']:.1f} passes (start {start['nfe']:.1f}, perplexity {start['judge_perplexity']:.2f})"


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


def _told(as_varied: dict[Axis, float]) -> str:
    return "".join(f", {value:.2f} at the student's {axis} entropy" for axis, value in as_varied.items())
