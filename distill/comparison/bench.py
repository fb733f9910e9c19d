"""What every student of a comparison is measured with, and the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from distill.config import DistillConfig
from distill.evaluation.bench import Bench
from distill.evaluation.judge import load_judge
from distill.evaluation.reference import reference_text
from distill.evaluation.results import Evaluation
from distill.evaluation.sample import sampler_of
from distill.evaluation.subject import frozen_on
from distill.models import load_averaged, load_base, load_discriminator
from distill.runtime.checkpoints import AVERAGE
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess


class SharedBench:
    """One judge, one text, one noise.

    Raises:
        UserError: teacher or students can not be measured so; see `distill.evaluation.checks.check`.
    """

    def __init__(self, config: DistillConfig, with_teacher: bool):
        """Load the judge and, to be measured first, the teacher."""
        self.evaluation = config.evaluate
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._precision = getattr(torch, config.evaluate.precision)
        teacher, self.tokenizer = load_base(config, self._precision)
        judge = load_judge(self.evaluation.judge, self.tokenizer, self.evaluation.retokenize, self.device)
        length = self.evaluation.length or config.sequence_length
        bench = Bench(judge, self.evaluation, length, MaskedProcess(config.teacher.process))
        text = reference_text(config, self.tokenizer)
        bench = bench.with_text(text, self.tokenizer, teacher.spec.mask_id)
        self._students = bench.with_gauges(config.data, self.tokenizer, teacher)
        self._teacher: tuple[Denoiser, Bench] | None = None
        if with_teacher:
            # where the sampler asks a critic, the teacher, which has none, is sampled without
            without_critic = self.evaluation.model_copy(update={"sampler": sampler_of(self.evaluation, None)})
            bench = replace(self._students, config=without_critic)
            bench.check(teacher, None)
            self._teacher = teacher, bench

    def measure_teacher(self) -> Evaluation:
        """The evaluation of real text and the teacher, which is forgotten: training needs the memory."""
        assert self._teacher is not None
        (teacher, bench), self._teacher = self._teacher, None
        return bench.evaluate(frozen_on(teacher, self.device), None)

    def measure_student(self, checkpoint: Path, config: DistillConfig) -> Evaluation:
        """The evaluation of a checkpoint's averaged student, with its own critic where the sampler asks one."""
        folder = checkpoint / AVERAGE
        student, critic = load_averaged(folder, self.tokenizer, config.teacher, self._precision), None
        if config.evaluate.sampler.needs_critic:
            teacher, _ = load_base(config, self._precision)
            critic = load_discriminator(config, checkpoint, teacher, student).to(self.device)
        return self._students.evaluate(None, frozen_on(student, self.device), critic)
