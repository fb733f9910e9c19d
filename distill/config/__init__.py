"""Typed configuration: what may be set, how it is read, and how a mistake is explained."""

from distill.config.data import DataConfig
from distill.config.models import ModelConfig, TeacherConfig, TokenizerConfig
from distill.config.overrides import apply_override, dump_config, is_override, load_config, validate
from distill.config.schema import (
    AnyConfig,
    DistillConfig,
    EvaluateConfig,
    OptimizerConfig,
    PretrainConfig,
    TrainConfig,
)

__all__ = [
    "AnyConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "TeacherConfig",
    "TokenizerConfig",
    "TrainConfig",
    "apply_override",
    "dump_config",
    "is_override",
    "load_config",
    "validate",
]
