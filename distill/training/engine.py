"""One engine per trained network: DeepSpeed's, and its float32 state by parameter name, whatever the ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, TrainConfig
from distill.runtime.world import World, import_deepspeed
from students.student import cast, enable_gradient_checkpointing
from teachers.errors import UserError

STATE = ("weight", "exp_avg", "exp_avg_sq")
"""What training keeps of every parameter, in float32: its master copy and Adam's two moments."""


def learning_rate_factor(update: int, config: OptimizerConfig, updates: int) -> float:
    """Linear warm-up to 1, constant, then linear decay to ``final`` over the last ``decay`` of the run."""
    if update < config.warmup:
        return (update + 1) / config.warmup
    decay_updates = config.decay * updates
    left = updates - update
    if left >= decay_updates:
        return 1.0
    return config.final + (1 - config.final) * left / decay_updates


def micro_batch(train: TrainConfig, world: World, group: int = 1) -> int:
    """Rows a process sends through a network at once; the rows of an update must divide evenly.

    Args:
        group: rows that the objective looks at together, which no process and no micro-batch may part.

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
    if micro % group:
        raise UserError(
            f"train.batch {train.batch} over {world.size} processes makes micro-batches of {micro} rows, not a "
            f"multiple of {group}, the rows this objective groups; change train.batch or the number of processes"
        )
    return micro


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that does nothing while ``refuse`` is set: how a non-finite loss is kept out of the weights."""

    refuse = False

    def step(self, closure: Any = None) -> Any:
        """Take a step, unless refused."""
        return None if self.refuse else super().step(closure)


class Engine:
    """A network, its DeepSpeed engine, and its state gathered and scattered by parameter name.

    DeepSpeed shards the float32 state differently in each ZeRO stage and for each number of processes. `gather` and
    `scatter` hide that: all processes iterate together and each sees the full tensors, so that a checkpoint is of no
    stage and no world size.

    Attributes:
        network: the trained module; under ZeRO 3 its parameters exist only inside its own forward pass.
        parameters: how many numbers are trained.
    """

    def __init__(
        self, network: nn.Module, optimizer: OptimizerConfig, train: TrainConfig, section: dict[str, Any], world: World
    ):
        """Wrap ``network``.

        Args:
            section: the config's ``deepspeed`` section, already checked; passed through. Without a stage, ZeRO 1.
        """
        deepspeed = import_deepspeed()
        micro = micro_batch(train, world)
        zero = {"stage": 1, **section.get("zero_optimization", {})}
        self.network, self.optimizer, self.updates, self.stage = network, optimizer, train.updates, zero["stage"]
        network.collective = zero["stage"] == 3 and world.size > 1  # see `Denoiser.collective`
        if train.precision == "bfloat16":  # as DeepSpeed would, but before it has to fit on the device in float32
            cast(network, torch.bfloat16)
        if zero["stage"] == 3:  # DeepSpeed moves the shards; a whole network need not fit on the device
            for buffer in network.buffers():
                buffer.data = buffer.data.to(world.device)
        else:
            network.to(world.device)
        if train.gradient_checkpointing:
            enable_gradient_checkpointing(network)
        self._trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for _, p in self._trained)
        self._shapes = {name: p.shape for name, p in self._trained}  # ZeRO 3 empties the parameters themselves
        self._adam = GuardedAdamW(
            [p for _, p in self._trained],
            lr=optimizer.lr,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        config = {
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW steps on the CPU as well
            "steps_per_print": 10**9,
            **section,
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": train.batch // world.size // micro,
            "gradient_clipping": optimizer.clip,
            "bf16": {"enabled": train.precision == "bfloat16"},
        }
        self._engine = deepspeed.initialize(
            model=network, model_parameters=[p for _, p in self._trained], optimizer=self._adam, config=config
        )[0]
        for master in self.masters():  # DeepSpeed's views of the moments must be of these, from the first update on
            self._adam.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        if self.stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def masters(self) -> list[Tensor]:
        """This process's shards of the float32 weights: what Adam steps."""
        if self.stage == 0:
            return [p for _, p in self._trained]
        if self.stage == 3:
            return self._engine.optimizer.fp32_partitioned_groups_flat
        return self._engine.optimizer.single_partition_of_fp32_groups

    @property
    def adam_steps(self) -> int:
        """Steps that Adam has taken; refused ones do not count."""
        return int(self._adam.state[self.masters()[0]]["step"])

    def learning_rate(self, update: int) -> float:
        """The rate of an update's step, counted from 0."""
        return self.optimizer.lr * learning_rate_factor(update, self.optimizer, self.updates)

    def backward(self, loss: Tensor) -> None:
        """Accumulate a micro-batch's gradient; `step` must follow."""
        self._engine.backward(loss)

    def step(self, update: int, loss_is_finite: bool = True) -> tuple[float, bool]:
        """After each micro-batch; at the last one of an update the weights move.

        Args:
            update: counted from 0; sets the learning rate.
            loss_is_finite: of the whole update over all processes, the same on each.

        Returns:
            The gradient's norm before clipping, and whether the weights moved: not if loss or norm were not finite.
            Both mean something at the last micro-batch only.
        """
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate(update)
        last = self._engine.is_gradient_accumulation_boundary()
        norm = self._own_norm() if self.stage == 0 and last else math.nan
        self._adam.refuse = not loss_is_finite or (self.stage == 0 and last and not math.isfinite(norm))
        self._engine.step()
        if self.stage > 0 and last:
            norm = float(self._engine.get_global_grad_norm())
        return norm, not self._adam.refuse and math.isfinite(norm)

    def _own_norm(self) -> float:
        """ZeRO 0 in float32 keeps no norm; gradients are whole on every process."""
        squares = [p.grad.float().square().sum() for _, p in self._trained if p.grad is not None]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    def gather(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter's ``kind`` of state (see `STATE`) in full; all processes iterate together."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._trained:
            if self.stage == 0:
                yield name, parameter.detach() if kind == "weight" else self._adam.state[parameter][kind]
            elif kind == "weight":
                yield name, safe_get_full_fp32_param(parameter)
            else:
                yield name, safe_get_full_optimizer_state(parameter, kind)

    @torch.no_grad()
    def scatter(self, kind: str, value: Callable[[str], Tensor]) -> None:
        """Put ``kind`` of state back from full tensors, by name; the inverse of `gather`.

        Raises:
            UserError: a tensor has another shape than the parameter.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self._trained:
            full = value(name)
            if full.shape != self._shapes[name]:
                raise UserError(
                    f"{kind} of {name} has shape {tuple(full.shape)}, the network's has {tuple(self._shapes[name])}; "
                    "resume with the config that the run was started with"
                )
            full = full.to(parameter.device, torch.float32)
            if self.stage == 0:
                (parameter if kind == "weight" else self._adam.state[parameter][kind]).copy_(full)
            elif kind == "weight":
                safe_set_full_fp32_param(parameter, full)
            else:
                safe_set_full_optimizer_state(parameter, full, kind)

    def load(self, state: Callable[[str, str], Tensor], adam_steps: int) -> None:
        """Continue from a checkpoint.

        Args:
            state: (kind, parameter name) → full tensor.
        """
        for kind in STATE:
            self.scatter(kind, lambda name, kind=kind: state(kind, name))
        for master in self.masters():
            self._adam.state[master]["step"].fill_(adam_steps)
        self._weights_from_masters()

    def _weights_from_masters(self) -> None:
        """Recompute the weights that forward passes use, as DeepSpeed does at the end of a step."""
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
