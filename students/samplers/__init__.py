"""One rule a file; passes counted."""

from typing import Any

from pydantic import ValidationError

from students.samplers.ancestral import AncestralConfig
from students.samplers.dilated import DilatedConfig
from students.samplers.planner import PlannerConfig
from students.samplers.random_start import RandomStartConfig
from students.samplers.rgas import RgasConfig
from students.samplers.sampler import (
    LOG_LINEAR,
    CountedDenoiser,
    Draw,
    SampleOutput,
    Sampler,
    SamplerConfig,
    draw_from,
    draw_tokens,
)
from students.samplers.threshold import ThresholdConfig
from students.samplers.top_k import TopKConfig
from teachers.errors import UserError

SAMPLERS: dict[str, type[SamplerConfig]] = {
    "ancestral": AncestralConfig,
    "dilated": DilatedConfig,
    "random_start": RandomStartConfig,
    "rgas": RgasConfig,
    "top_k": TopKConfig,
    "threshold": ThresholdConfig,
    "planner": PlannerConfig,
}
"""What ``evaluate.sampler`` may name."""


def written_sampler(written: Any) -> SamplerConfig:
    """The sampler that a run folder or an export names, with the settings that are still known.

    Ancestral where none is named, or one that asks a critic, which no export has.

    Raises:
        UserError: a setting is out of range.
    """
    values = written if isinstance(written, dict) else {"name": written}
    kind = SAMPLERS.get(str(values.get("name")), AncestralConfig)
    if kind.needs_critic:
        return AncestralConfig()
    try:
        return kind(**{key: value for key, value in values.items() if key in kind.model_fields and key != "name"})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"sampler {values['name']!r} was written with {'.'.join(map(str, first['loc']))} = {first['input']!r}: "
            f"{first['msg']}; mend it in generation_config.json"
        ) from error


__all__ = [
    "LOG_LINEAR",
    "SAMPLERS",
    "AncestralConfig",
    "CountedDenoiser",
    "Draw",
    "RgasConfig",
    "SampleOutput",
    "Sampler",
    "SamplerConfig",
    "draw_from",
    "draw_tokens",
    "written_sampler",
]
