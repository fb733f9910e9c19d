"""DeepSpeed's engine: several processes, optimiser states and weights in shards, offload, and whatever else it can."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.config.deepspeed import zero_section
from distill.runtime.deepspeed import join_deepspeed
from distill.runtime.world import World
from distill.training.engine import Engine, adam_settings, micro_batch
from teachers.denoiser import Denoiser


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that does nothing while ``refuse`` is set: how a non-finite loss is kept out of the weights."""

    refuse = False

    def step(self, closure: Any = None) -> Any:
        """Take a step, unless refused."""
        return None if self.refuse else super().step(closure)


class ZeroEngine(Engine):
    """A network within DeepSpeed's engine, at any ZeRO stage.

    Under ZeRO 3 the network's parameters exist only inside its own forward pass.
    """

    _adam: GuardedAdamW

    def __init__(
        self, network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig, section: dict[str, Any], world: World
    ):
        """Wrap ``network``.

        Args:
            section: the config's ``deepspeed`` section, already checked; passed through. Without a stage, ZeRO 1.
        """
        super().__init__(network, optimizer, train)
        deepspeed = join_deepspeed(world)
        self.stage = {"stage": 1, **zero_section(section)}["stage"]
        if isinstance(network, Denoiser):
            network.collective = self.stage == 3 and world.size > 1
        if self.stage == 3:  # DeepSpeed moves the shards; a whole network need not fit on the device
            for buffer in network.buffers():
                buffer.data = buffer.data.to(world.device)
        else:
            network.to(world.device)
        tensors = [p for _, p in self._trained]
        self._adam = GuardedAdamW(self._grouped(tensors), **adam_settings(optimizer))
        config = deepspeed_config(section, optimizer, train, world)
        self._engine = deepspeed.initialize(
            model=network, model_parameters=tensors, optimizer=self._adam, config=config
        )[0]
        if self.stage > 0 and not any("offload" in key for key in zero_section(section)):
            self._share_masters()
        self._zero_moments()  # DeepSpeed's views of the moments must be of these, from the first update on
        if self.stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _share_masters(self) -> None:
        """Let masters be the weights themselves where these are float32, too: DeepSpeed copies them and keeps both.

        It writes each step's masters over the weights, which then changes nothing.
        """
        zero = self._engine.optimizer
        for master, weights in zip(self.masters(), self._shards(), strict=True):
            if master.dtype == weights.dtype:
                master.data = weights.data
        if self.stage < 3:
            zero._link_all_hp_params()  # its views of the masters are of the copies

    def _shards(self) -> list[Tensor]:
        """The weights that this process's masters stand for, flat, in the training precision."""
        zero = self._engine.optimizer
        if self.stage == 3:
            return zero.fp16_partitioned_groups_flat
        parts = zip(zero.parallel_partitioned_bit16_groups, zero.real_dp_process_group, strict=True)
        return [shards[dist.get_rank(group)] for shards, group in parts]

    def masters(self) -> list[Tensor]:
        """See `Engine.masters`."""
        if self.stage == 0:
            return [p for _, p in self._trained]
        if self.stage == 3:
            return self._engine.optimizer.fp32_partitioned_groups_flat
        return self._engine.optimizer.single_partition_of_fp32_groups

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch

    def step(self, update: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """See `Engine.step`; DeepSpeed reads the norm itself."""
        loss_is_finite = math.isfinite(float(loss))
        self._set_learning_rate(update)
        norm = self._own_norm() if self.stage == 0 else math.nan
        self._adam.refuse = not loss_is_finite or (self.stage == 0 and not math.isfinite(norm))
        self._engine.step()
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm())
        moved = not self._adam.refuse and math.isfinite(norm)
        return loss.new_tensor(norm), loss.new_tensor(moved, dtype=torch.bool)

    def _own_norm(self) -> float:
        """ZeRO 0 in float32 keeps no norm; gradients are whole on every process."""
        squares = [p.grad.float().square().sum() for _, p in self._trained if p.grad is not None]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    def _state(self, kind: str, name: str, parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            return parameter.detach() if kind == "weight" else self._adam.state[parameter][kind]
        whole = (
            safe_get_full_fp32_param(parameter) if kind == "weight" else safe_get_full_optimizer_state(parameter, kind)
        )
        assert whole is not None, "DeepSpeed holds the state of every trained parameter"
        return whole

    def _set_state(self, kind: str, name: str, parameter: nn.Parameter, full: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if self.stage == 0:
            self._state(kind, name, parameter).copy_(full)
        elif kind == "weight":
            safe_set_full_fp32_param(parameter, full)
        else:
            safe_set_full_optimizer_state(parameter, full, kind)

    def _weights_from_masters(self) -> None:
        zero = self._engine.optimizer
        if self.stage in (1, 2):
            zero.update_lp_params()
        elif self.stage == 3:
            zero._partition_all_parameters()
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def destroy(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self._engine.destroy()


def deepspeed_config(
    section: dict[str, Any], optimizer: OptimizerConfig, train: TrainConfig, world: World
) -> dict[str, Any]:
    """What `deepspeed.initialize` is given: the config's ``deepspeed`` section, and what fewstep sets itself."""
    micro = micro_batch(train, world)
    return {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW steps on the CPU as well
        "steps_per_print": 10**9,
        **section,
        "zero_optimization": {"stage": 1, **zero_section(section)},
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.batch // world.size // micro,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": train.precision == "bfloat16"},
    }
