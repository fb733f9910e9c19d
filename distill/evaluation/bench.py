"""What models are measured with: one judge, one text, one noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, EvaluateConfig
from distill.evaluation.evaluate import check, evaluate
from distill.evaluation.judge import AnyJudge
from distill.evaluation.reference import reference_rows
from distill.evaluation.results import Evaluation
from distill.runtime.world import ALONE, World
from teachers.denoiser import Denoiser
from teachers.process import MaskedProcess


@dataclass(frozen=True)
class Bench:
    """What models are measured with; see `evaluate` for the fields."""

    judge: AnyJudge
    config: EvaluateConfig
    length: int
    process: MaskedProcess
    reference: Tensor | None = None
    world: World = ALONE

    def check(self, teacher: Denoiser | None, student: Denoiser | None, critic: nn.Module | None = None) -> None:
        """Refuse models that can not be measured, before anything is sampled."""
        check(teacher, student, self.judge, self.config, self.length, self.reference, critic)

    def with_text(self, text: DataConfig | None, tokenizer: PreTrainedTokenizerBase) -> Bench:
        """The same, with real text to read beside; ``text`` None for none."""
        if text is None:
            return self
        return replace(self, reference=reference_rows(text, self.config, self.length, tokenizer))

    def evaluate(
        self, teacher: Denoiser | None, student: Denoiser | None, critic: nn.Module | None = None
    ) -> Evaluation:
        """Measure models, which are frozen and on the judge's device."""
        return evaluate(
            teacher, student, self.judge, self.config, self.length, self.reference, self.config.seed, self.process,
            critic, self.world,
        )  # fmt: skip
