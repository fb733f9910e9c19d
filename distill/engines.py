"""One DeepSpeed engine per trained network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.world import World, import_deepspeed
from teachers.errors import UserError


def learning_rate_factor(update: int, config: OptimizerConfig, updates: int) -> float:
    """Linear warm-up to 1, constant, then linear decay to ``final`` over the last ``decay`` of the run."""
    if update < config.warmup:
        return (update + 1) / config.warmup
    decay_updates = config.decay * updates
    left = updates - update
    if left >= decay_updates:
        return 1.0
    return config.final + (1 - config.final) * left / decay_updates


def micro_batch(train: TrainConfig, world: World) -> int:
    """Rows a process sends through a network at once; the rows of an update must divide evenly.

    Raises:
        UserError: they do not.
    """
    if train.batch % world.size:
        raise UserError(
            f"train.batch {train.batch} is not a multiple of the {world.size} processes; change train.batch or "
            "the number of processes"
        )
    share = train.batch // world.size
    micro = train.micro_batch or share
    if share % micro:
        raise UserError(
            f"train.batch {train.batch} over {world.size} processes is {share} rows each, not a multiple of "
            f"train.micro_batch {micro}; change either"
        )
    return micro


def build_engine(
    network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig, section: dict[str, Any], world: World
) -> Any:
    """Wrap ``network`` in a DeepSpeed engine.

    Args:
        section: the config's ``deepspeed`` section, already checked; passed through. Without a stage, ZeRO 1.
    """
    deepspeed = import_deepspeed()
    micro = micro_batch(train, world)
    parameters = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(
        parameters, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda update: learning_rate_factor(update, optimizer, train.updates)
    )
    config = {
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        **section,
        "zero_optimization": {"stage": 1, **section.get("zero_optimization", {})},
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.batch // world.size // micro,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": train.precision == "bfloat16"},
    }
    return deepspeed.initialize(
        model=network, model_parameters=parameters, optimizer=adam, lr_scheduler=schedule, config=config
    )[0]


def gradient_norm(engine: Any) -> float:
    """The norm of the gradient that the next or last step uses, before clipping."""
    norm = engine.get_global_grad_norm()
    if norm is None:  # ZeRO 0 in float32 keeps none
        squares = [p.grad.float().square().sum() for p in engine.module.parameters() if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt() if squares else 0.0
    return float(norm)


def full_parameters(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of an engine's network in full and in float32; all processes must iterate together."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        yield name, (parameter.detach().float() if full is None else full)
