"""``--model_args`` of the model type, and what a task or ``--gen_kwargs`` may say for its own requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from lm_eval.models.utils import normalize_gen_kwargs
from pydantic import Field, field_validator

from distill.config import TeacherConfig, validate
from distill.config.samplers import AnySampler
from distill.config.values import Count
from distill.evaluation.likelihood import Estimate
from distill.generation import ROWS, at_temperature, chosen_sampler
from distill.runtime.messages import warn
from students.samplers import Sampler
from teachers.denoiser import DenoiserSpec
from teachers.section import Section


class RequestSettings(Section):
    """How a text is written.

    Attributes:
        steps: passes a text, or what the sampler's ``budget`` counts; None for what the model was made for.
        sampler: its name, also a family's, or its settings as in a config; None for what the model was made for.
        temperature: of the draws; 0 for the most probable token. None for the sampler's own.
        block_length: tokens of the blocks that are written one after the other; None for the sampler's own.
        length: L, tokens of a canvas, prompt included, as in training. None: each canvas has room for its prompt and
            ``max_gen_toks`` more.
        max_gen_toks: tokens of a text, where ``length`` does not say it.
        seed: the same seed gives the same texts, and the same estimates.
    """

    steps: Count | None = None
    sampler: str | dict[str, Any] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    block_length: Count | None = None
    length: Annotated[int, Field(ge=2)] | None = None
    max_gen_toks: Count = 256
    seed: int = Field(default=0, ge=0, lt=2**63)

    def rule(self, own: Sampler, spec: DenoiserSpec) -> Sampler:
        """The sampler that was asked for.

        Raises:
            UserError: there is no such sampler, or it has no such setting.
        """
        written = self.sampler
        given = (
            written if written is None or isinstance(written, str) else validate(_Rule, {"sampler": written}).sampler
        )
        rule = chosen_sampler(own, given, self.temperature or None, spec)
        if self.temperature == 0:
            rule = at_temperature(rule, 0)
        if self.block_length is None:
            return rule
        return validate(_Rule, {"sampler": {**rule.model_dump(), "block_length": self.block_length}}).sampler


def request_settings(own: RequestSettings, arguments: dict[str, Any]) -> tuple[RequestSettings, list[str]]:
    """What a request with such keyword arguments asks for, and its stop strings.

    Tasks that say nothing are given ``do_sample=False``, so this is not heeded: how tokens are drawn is the sampler's.
    ``do_sample=True`` with a temperature is.

    Args:
        own: of the model, where the request says nothing.

    Raises:
        UserError: a setting is out of range.
    """
    asked: dict[str, Any] = {**normalize_gen_kwargs(arguments, own.max_gen_toks)}
    until = [text for text in asked.pop("until") if text]
    temperature = asked.pop("temperature", 0.0)
    if asked.pop("do_sample") and temperature > 0:
        asked["temperature"] = temperature
    known = RequestSettings.model_fields
    unknown = sorted(asked.keys() - known)
    if unknown:
        warn(f"{', '.join(unknown)}: a request has no such settings here; put what a sampler has into its settings")
    written = {key: value for key, value in asked.items() if key in known}
    return validate(RequestSettings, {**{key: getattr(own, key) for key in known}, **written}), until


class _Rule(Section):
    sampler: AnySampler


class HarnessSettings(RequestSettings):
    """``--model_args``: the model, how it writes and how probabilities are estimated; and options of a teacher.

    Attributes:
        pretrained: a folder (an export, a run, a checkpoint of any family), ``bundled:NAME``, or a hub name.
        samples: passes that estimate the log-probability of a continuation.
        likelihood: the bound that the model is trained on, or its probabilities from left to right; see
            `distill.evaluation.likelihood`.
        greedy: whether a continuation's `is_greedy` is found out, in ``steps`` passes more; else it is False.
        truncation: contexts that are too long lose their first tokens; else they are refused.
        precision: of the weights; None for float32, and bfloat16 on a GPU where no digit is lost.
        batch_size: rows that are written or asked at once; "auto" for 64.
        device: where; a GPU only where there is one.
    """

    pretrained: str
    samples: Count = 128  # [code] of LLaDA's evaluation
    likelihood: Estimate = "elbo"
    greedy: bool = True
    truncation: bool = False
    precision: Literal["float32", "bfloat16"] | None = None
    batch_size: Count | Literal["auto"] = 1
    max_batch_size: Count | None = None
    device: str | None = None

    @field_validator("batch_size", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        """The harness's command line passes it on as it was written; "auto:N" tries N times elsewhere."""
        if not isinstance(value, str) or value.isdecimal():
            return int(value)
        if value.partition(":")[0] != "auto":
            raise ValueError(f"{value!r} is no number of rows; give one, or auto")
        return "auto"

    @property
    def rows(self) -> int:
        """At once."""
        return self.batch_size if isinstance(self.batch_size, int) else min(ROWS, self.max_batch_size or ROWS)


TEACHER_OPTIONS = frozenset(TeacherConfig.model_fields) - {"path", "placement", "max_memory"}
"""What may be said of a checkpoint that does not say it itself; see `ModelConfig`."""
