"""One rule a file; passes counted."""

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
]
