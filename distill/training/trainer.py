"""One update after another: next batch → rollout → for each phase: loss, backward, step → average. No files, no words.

`distill.training.loop` puts log, watch and checkpoints around it; a notebook iterates over it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.config import OptimizerConfig, TrainConfig
from distill.data.batches import Rows, training_batch
from distill.runtime.compilation import compile_network
from distill.runtime.world import World
from distill.training.engine import Engine, micro_batch
from distill.training.engines import start_engine
from objectives.objective import LossOutput, Objective, Rollout
from students.student import Ema, cast, twin, use_flex_attention
from teachers.denoiser import Denoiser
from teachers.randomness import RowStreams


@dataclass(frozen=True)
class Step:
    """One phase of an update.

    Attributes:
        loss: over all processes.
        norm: of the gradient, before clipping.
        moved: whether the weights did; not if loss or norm were not finite.
        outs: what each micro-batch of this process gave.
    """

    loss: float
    norm: float
    moved: bool
    outs: list[LossOutput]


class DeviceStep(NamedTuple):
    """A `Step` whose numbers the host has not read, () each."""

    loss: Tensor
    norm: Tensor
    moved: Tensor
    outs: list[LossOutput]


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        number: from 1.
        steps: the phases in the order in which they were made, and what each did.
    """

    number: int
    steps: list[tuple[str, Step]]

    @property
    def moved(self) -> bool:
        """Whether every phase moved its network."""
        return all(step.moved for _, step in self.steps)


class Trainer:
    """An objective's networks on their engines, and the student's average. Iterating makes the updates that are left.

    Attributes:
        done: updates made.
        engines: phase → engine.
        target: the objective's, or None.
    """

    def __init__(
        self,
        objective: Objective,
        optimizers: dict[str, OptimizerConfig],
        corpus: Rows | None,
        config: TrainConfig,
        deepspeed: dict[str, Any] | None,
        world: World,
        length: int,
    ):
        """Put the networks where they train.

        Args:
            optimizers: one a phase of the objective.
            corpus: real rows or trajectories, or None for objectives that need none.
            deepspeed: what DeepSpeed is told, or None where torch alone trains, see `deepspeed_section`.
            length: tokens a row.
        """
        self.objective, self.corpus, self.config, self.world = objective, corpus, config, world
        self.length = length
        self.micro, self.rows, self.done = micro_batch(config, world, objective.group), world.rows(config.batch), 0
        # kept on the CPU, but for when it is watched: a large one need not fit beside what trains
        self._average = twin(objective.student).cpu() if world.is_main else None
        self._average_of = -1
        self.engines: dict[str, Engine] = {
            phase: start_engine(objective.networks[phase], optimizers[phase], config, deepspeed, world)
            for phase in objective.phases
        }
        self.ema = Ema(self.engines["student"].masters(), config.ema)
        self.target = objective.target
        for name, network in objective.networks.items():
            if name not in objective.phases:
                cast(network, getattr(torch, config.precision)).to(world.device)
            compile_network(network, config.compile)
            if config.flex_attention:
                use_flex_attention(network)
        if self._average is not None and not self._average.compilation:
            # without CUDA graphs, which each journey to the device would make void; an adapter's base has been compiled
            compile_network(self._average, bool(config.compile))

    def __iter__(self) -> Iterator[Update]:
        while self.done < self.config.updates:
            yield self.update()

    def update(self) -> Update:
        """Make the next update; all processes together."""
        update = self.done
        rows = [update * self.config.batch + row for row in self.rows]
        mask_id = self.objective.student.spec.mask_id
        batch = training_batch(self.corpus, self.config.seed, rows, self.length, mask_id, self.world.device)
        if self.objective.begin(update, self.config.updates):
            fill_average(self.target, self.ema, self.engines["student"])
        streams = RowStreams(self.config.seed, (update,), self.rows, self.world.device)
        rollout = self.objective.rollout(batch, streams)
        steps = self._steps(rollout)
        for _ in range(1, self.objective.uses):
            rollout = self.objective.again(rollout, streams)
            steps += self._steps(rollout)
        self.done += 1
        return Update(self.done, steps)

    def _steps(self, rollout: Rollout) -> list[tuple[str, Step]]:
        """Each phase's step, and then the average's."""
        rollout.learn()
        steps = read_steps([(phase, self._step(phase, rollout)) for phase in self.objective.phases])
        if any(phase == "student" and step.moved for phase, step in steps):
            self.ema.update()
        return steps

    def _step(self, phase: str, rollout: Rollout) -> DeviceStep:
        """Forward and backward passes of some rows at a time, then the optimiser's step."""
        engine, outs, rows = self.engines[phase], [], len(rollout)
        loss = torch.zeros((), dtype=torch.float64, device=self.world.device)
        terms = self.world.sum(self.objective.count(phase, rollout)).clamp(min=1)
        for start in range(0, rows, self.micro):
            out = self.objective.loss(phase, rollout.rows(slice(start, start + self.micro)))
            # engines average over processes and micro-batches; the loss is a mean over all terms
            engine.backward(out.sum * (self.world.size * (rows // self.micro) / terms).to(out.sum))
            outs.append(LossOutput(out.sum.detach(), out.metrics))
            loss += outs[-1].sum / terms
        loss = self.world.sum(loss)
        return DeviceStep(loss, *engine.step(self.done, loss), outs)

    def average(self) -> Denoiser | None:
        """The averaged student as it is now, on the main process; all processes ask together.

        It is one and the same network, on the CPU, which changes when it is asked for after another update.
        """
        if self._average_of != self.done:
            fill_average(self._average, self.ema, self.engines["student"])
            self._average_of = self.done
        return self._average

    def learning_rates(self) -> dict[str, float]:
        """Phase → what its last update was made with."""
        return {phase: engine.learning_rate(self.done - 1) for phase, engine in self.engines.items()}

    def destroy(self) -> None:
        """Release what the engines hold beside their networks."""
        for engine in self.engines.values():
            engine.destroy()


def read_steps(steps: list[tuple[str, DeviceStep]]) -> list[tuple[str, Step]]:
    """All that the host learns of some steps, read at once: until then it has not waited for the device."""
    told = torch.stack([number.double() for _, step in steps for number in step[:3]]).view(-1, 3).tolist()
    return [
        (phase, Step(loss, norm, bool(moved), step.outs))
        for (phase, step), (loss, norm, moved) in zip(steps, told, strict=True)
    ]


@torch.no_grad()
def fill_average(average: Denoiser | None, ema: Ema, student: Engine) -> None:
    """Put the averaged weights into ``average``, cast; all processes together, those without one as well."""
    into = dict(average.named_parameters()) if average is not None else {}
    with ema.swapped():
        for name, weight in student.gather("weight"):
            if into:
                into[name].copy_(weight)
