"""The ``deepspeed`` section: what of it is passed on, and what is refused before there is a run folder."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import ValidationError

from distill.config.explain import shown
from teachers.errors import nearest
from teachers.source import reason

RESERVED = {
    "train_batch_size": "train.batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.batch and train.micro_batch",
    "gradient_clipping": "train.student.clip and train.critic.clip",
    "optimizer": "train.student and train.critic",
    "scheduler": "train.student and train.critic",
    "bf16": "train.precision",
    "fp16": "train.precision",
}


def check_deepspeed(section: dict[str, Any], precision: str) -> None:
    """Check what is passed through to DeepSpeed: its own key names, none that fewstep sets, no known-broken pair."""
    if not section:
        return
    from distill.runtime.deepspeed import import_deepspeed  # which imports torch

    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = _deepspeed_keys()
    for key in section:
        if key in RESERVED:
            raise ValueError(f"deepspeed.{key} is set by fewstep; set {RESERVED[key]} instead")
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


def _check_as_deepspeed_does(section: dict[str, Any]) -> None:
    """Let DeepSpeed read the section as it will when the engines are built, by which time there is a run folder."""
    from deepspeed.runtime.config import DeepSpeedConfig

    # a copy: DeepSpeed fills sections in
    config = copy.deepcopy(section) | {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    try:
        DeepSpeedConfig(config)
    except Exception as error:  # a dozen types, for what is one thing: it cannot be used
        why = reason(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(str(p) for p in first['loc'])} is {shown(first['input'])}: {first['msg']}"
        raise ValueError(
            f"DeepSpeed cannot use the deepspeed section ({why}); correct or leave out that key"
        ) from error


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
