"""The ``deepspeed`` section: what of it is passed on, and what is refused before there is a run folder."""

from __future__ import annotations

import copy
from typing import Any

from distill.config.explain import library_reason, shown
from teachers.errors import nearest

RESERVED = {
    "train_batch_size": "train.batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.batch and train.micro_batch",
    "gradient_clipping": "train.student.clip and train.critic.clip",
    "optimizer": "train.student and train.critic",
    "scheduler": "train.student and train.critic",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "elasticity": "train.batch and train.micro_batch",
    "comet": "train.wandb",
    "csv_monitor": "train.wandb",
    "tensorboard": "train.wandb",
    "wandb": "train.wandb",
}
"""What fewstep sets, and the key of its own that says it."""
FIXED = {
    "gradient_allreduce_op": "mean",
    "managed_gradient_accumulation": True,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
"""What has one value that the loop is right with."""
PAST_THE_ENGINE = {
    "autotuning", "compile", "compression_training", "curriculum_learning", "data_efficiency", "dataloader_drop_last",
    "dynamic_batching", "expert_parallel", "flops_profiler", "hybrid_engine", "memory_breakdown", "pipeline",
    "progressive_layer_drop", "random_ltd", "tensor_parallel", "wall_clock_breakdown", "weight_quantization",
}  # fmt: skip
"""What acts in the forward pass of DeepSpeed's engine, in its data loader or its launcher. Objectives call the networks
themselves: of this it would do nothing, or half and fail."""


def deepspeed_section(section: dict[str, Any], processes: int, sharded_teacher: bool = False) -> dict[str, Any] | None:
    """What DeepSpeed is told, or None where torch alone trains.

    That is on one process, unless the config has a ``deepspeed`` section or the teacher lies in DeepSpeed's shards.
    """
    return section if section or sharded_teacher or processes > 1 else None


def zero_section(section: dict[str, Any]) -> dict[str, Any]:
    """The ``zero_optimization`` of a checked ``deepspeed`` section, empty where there is none."""
    return section.get("zero_optimization", {})


def check_deepspeed(section: dict[str, Any], precision: str) -> None:
    """Check what is passed through to DeepSpeed: its own key names, none that fewstep sets, no known-broken pair."""
    if not section:
        return
    from distill.runtime.deepspeed import import_deepspeed  # which imports torch

    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = _deepspeed_keys()
    for key, value in section.items():
        _check_key(key, value)
        if key not in known:
            raise ValueError(f"deepspeed.{key} is not a DeepSpeed key{nearest(key, sorted(known))}")
    zero = section.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"deepspeed.zero_optimization is {shown(zero)}; give a section such as {{stage: 1}}")
    fields = {name for n, f in DeepSpeedZeroConfig.model_fields.items() for name in (n, f.alias) if name}
    for key in zero:
        if key not in fields:
            close = nearest(str(key), sorted(fields))
            raise ValueError(f"deepspeed.zero_optimization.{key} is not a DeepSpeed key{close}")
    stage = zero.get("stage", 1)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ValueError(f"deepspeed.zero_optimization.stage is {stage!r}; allowed are 0, 1, 2 and 3")
    if stage == 0 and precision == "bfloat16":
        raise ValueError(
            "deepspeed.zero_optimization.stage 0 is wrong in bfloat16 (DeepSpeed decays the weights twice at first); "
            "use stage 1, or train.precision=float32"
        )
    _check_as_deepspeed_does(section)


def _check_key(key: str, value: Any) -> None:
    """Refuse what fewstep sets itself, and what cannot work in its loop."""
    given = f"deepspeed.{key} is {shown(value)}"
    if key in RESERVED and (_asks(value) or not isinstance(value, dict)):
        raise ValueError(f"{given}, but is set by fewstep; set {RESERVED[key]} instead")
    if key in PAST_THE_ENGINE and _asks(value):
        raise ValueError(
            f"{given}, but networks are called past DeepSpeed's engine, where it has no effect; leave it out"
        )
    if key in FIXED and value != FIXED[key]:
        raise ValueError(f"{given}; fewstep works with {FIXED[key]} alone; leave it out")


def _asks(value: Any) -> bool:
    """Whether a key's value asks for anything: everyday configs spell out what is switched off."""
    return bool(value.get("enabled", value) if isinstance(value, dict) else value)


def _check_as_deepspeed_does(section: dict[str, Any]) -> None:
    """Let DeepSpeed read the section as it will when the engines are built, by which time there is a run folder."""
    from deepspeed.runtime.config import DeepSpeedConfig

    # a copy: DeepSpeed fills sections in
    config = copy.deepcopy(section) | {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    try:
        DeepSpeedConfig(config)
    except Exception as error:  # a dozen types, for what is one thing: it cannot be used
        raise ValueError(unusable(section, error)) from error


def unusable(section: dict[str, Any], error: Exception) -> str:
    """What to tell when DeepSpeed raises over a ``deepspeed`` section."""
    return f"DeepSpeed cannot use deepspeed: {shown(section)} ({library_reason(error)}); correct or leave out that key"


# top-level keys that DeepSpeed reads by other means than the constants of its runtime
LITERAL_KEYS = {
    "zero_optimization", "comms_logger", "flops_profiler", "autotuning", "aio", "activation_checkpointing", "compile",
    "compression_training", "csv_monitor", "comet", "elasticity", "hybrid_engine", "nebula", "pipeline",
    "progressive_layer_drop", "sparse_gradients", "tensor_parallel", "tensorboard", "timers", "wandb",
    "weight_quantization",
}  # fmt: skip


def _deepspeed_keys() -> set[str]:
    """DeepSpeed's top-level keys, gathered from its own constants."""
    from deepspeed.runtime import config as runtime
    from deepspeed.runtime import constants

    names = {v for k, v in vars(constants).items() if k.isupper() and isinstance(v, str) and v.isidentifier()}
    return (
        names
        | LITERAL_KEYS
        | {v for k, v in vars(runtime).items() if k.isupper() and isinstance(v, str) and v.isidentifier()}
    )
