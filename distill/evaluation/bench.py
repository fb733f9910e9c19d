"""What models are measured with: one judge, one text, one noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from distill.config import DataConfig, EvaluateConfig
from distill.evaluation.checks import check
from distill.evaluation.evaluate import evaluate
from distill.evaluation.figures.gauges import Gauges
from distill.evaluation.figures.loading import load_gauges
from distill.evaluation.judge import AnyJudge
from distill.evaluation.reference import HeldOut, held_out
from distill.evaluation.results import Evaluation
from distill.runtime.world import ALONE, World
from teachers.denoiser import Denoiser, end_ids
from teachers.process import MaskedProcess


@dataclass(frozen=True)
class Bench:
    """What models are measured with; see `evaluate` for the fields."""

    judge: AnyJudge
    config: EvaluateConfig
    length: int
    process: MaskedProcess
    text: HeldOut = field(default_factory=HeldOut)
    world: World = ALONE
    gauges: Gauges | None = None

    def check(self, teacher: Denoiser | None, student: Denoiser | None, critic: nn.Module | None = None) -> None:
        """Refuse models that can not be measured, before anything is sampled."""
        check(teacher, student, self.judge, self.config, self.length, self.text.rows, critic, self.text.prompts)

    def with_text(self, text: DataConfig | None, tokenizer: PreTrainedTokenizerBase, mask_id: int) -> Bench:
        """The same, with real text to read beside, or prompts to write after; ``text`` None for none."""
        if text is None:
            return self
        config = self.config
        return replace(self, text=held_out(text, config.seed, config.samples, self.length, tokenizer, mask_id))

    def with_gauges(self, training: DataConfig | None, tokenizer: PreTrainedTokenizerBase, model: Denoiser) -> Bench:
        """The same, with what texts are measured with beside the judge.

        Args:
            training: what was trained on; None where it is not known. model: whose tokens end a text.
        """
        gauges = load_gauges(
            self.config, self.judge, self.text, training, self.length, tokenizer, end_ids(model), self.world
        )
        return replace(self, gauges=gauges)

    def evaluate(
        self,
        teacher: Denoiser | None,
        student: Denoiser | None,
        critic: nn.Module | None = None,
        served: bool = False,
        tell: Callable[[Evaluation], None] | None = None,
    ) -> Evaluation:
        """Measure models, which are frozen and on the judge's device."""
        return evaluate(
            teacher, student, self.judge, self.config, self.length, self.text.rows, self.config.seed, self.process,
            critic, self.world, self.text.prompts, served, self.gauges, tell,
        )  # fmt: skip
