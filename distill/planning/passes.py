"""The passes of an update and the memory that each takes, by running them on tensors that have shapes and no data.

The objective, the networks and autograd are the real ones; torch's fake tensors stand for the data, and every storage
is counted from the operation that makes it until it is freed. So the count follows the code, whatever family of model,
objective or kind of checkpointing it is, without a weight in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.config import DistillConfig
from distill.planning.alike import planned
from distill.planning.live_memory import LiveTensors, PassMemory
from objectives.objective import Objective
from students.adapters import AdaptedDenoiser
from students.samplers.at_once import AtOnce
from students.session import keeps_exactly
from students.student import cast, enable_gradient_checkpointing
from teachers.cache import KeyValues, Window
from teachers.canvas import Canvas
from teachers.checkpointing import Checkpointing
from teachers.chunks import chunk_count
from teachers.delegating import DelegatingDenoiser
from teachers.denoiser import Denoiser


@dataclass
class Passes:
    """The passes of an update.

    Attributes:
        rollouts: of each network that a rollout asks, one after the other.
        asked: names of those that it asks.
        phases: a loss's, by phase.
        held: bytes that a rollout keeps until the update is over, for the rows of a process.
    """

    rollouts: tuple[PassMemory, ...]
    asked: tuple[str, ...]
    phases: dict[str, PassMemory]
    held: float

    @property
    def rollout(self) -> PassMemory | None:
        """The pass of a rollout that takes most; None where it asks no network."""
        return max(self.rollouts, key=lambda memory: memory.forward.total, default=None)

    def grown(self, other: Passes, times: float) -> Passes:
        """See `Peak.grown`."""
        pairs = zip(self.rollouts, other.rollouts, strict=True)
        rollouts = tuple(memory.grown(shallow, times) for memory, shallow in pairs)
        phases = {name: memory.grown(other.phases[name], times) for name, memory in self.phases.items()}
        return Passes(rollouts, self.asked, phases, self.held)


def pass_memory(
    config: DistillConfig,
    teacher: Denoiser,
    objective: Objective,
    rows: int,
    micro: int,
    checkpointing: Checkpointing,
    device: str,
) -> Passes:
    """The memory of all passes of an update.

    Args:
        teacher, objective: with networks on torch's meta device; used up.
        rows: of this process; the rollout sends them through a network together.
        micro: rows of a loss.
        checkpointing: gradient checkpointing.
        device: the type of what trains, "cpu" or another one.
    """
    networks = {"teacher": teacher, **objective.networks}
    for name, network in networks.items():
        cast(network, getattr(torch, config.train.precision))
        if name in objective.phases:
            enable_gradient_checkpointing(network, checkpointing)
    with FakeTensorMode(), planned(device):
        tracer = _Tracer(objective, networks, _fill(list(networks.values())), config.sequence_length)
        asked = [tracer.rollout(name, rows) for name in objective.asks]
        if objective.writes and keeps_exactly(objective.student):
            asked.append(tracer.written(rows))
        phases = {phase: tracer.loss(phase, micro) for phase in objective.phases}
        held = tracer.held(micro) * rows / micro
    return Passes(tuple(asked), objective.asks, phases, held)


@dataclass
class _Tracer:
    """Runs passes on tensors without data.

    Attributes:
        networks: all, by name. there: their parameters and buffers, which are not counted.
        length: L.
    """

    objective: Objective
    networks: dict[str, nn.Module]
    there: list[Tensor]
    length: int

    def _live(self) -> LiveTensors:
        return LiveTensors(self.there, self.objective.student.spec.vocabulary)

    def _canvas(self, rows: int) -> Canvas:
        return Canvas.blank(rows, self.length, self.objective.student.spec.mask_id)

    @torch.no_grad()
    def rollout(self, name: str, rows: int) -> PassMemory:
        """A pass of a rollout: all rows at once, and a token drawn at each position."""
        network, live = self.networks[name], self._live()
        with live:
            canvas = self.objective.as_read(replace(self._canvas(rows), time=torch.ones(rows)))
            if isinstance(network, Denoiser):
                self._draw(network, network.features_at(canvas, canvas.open))
            else:
                network(canvas)
        return live.memory

    @torch.no_grad()
    def written(self, rows: int) -> PassMemory:
        """The last block of the texts that a student writes before its blocks: the keys and values of all are kept."""
        student, live = self.objective.student, self._live()
        size = min(student.spec.block_size or self.length, self.length)
        start = max(0, self.length - 2 * size)  # with the block that was just finished
        with live:
            canvas = self._canvas(rows // self.objective.group)
            window = Window(
                KeyValues(len(canvas), self.length), 0, (start,) * len(canvas), self.length - start, self.length
            )
            self._draw(student, student.window_features(canvas, window)[:, -size:].flatten(0, 1))
        return live.memory

    def _draw(self, denoiser: Denoiser, features: Tensor) -> None:
        chunks = chunk_count(len(features), denoiser.spec.vocabulary)
        uniforms = torch.zeros(len(features), dtype=torch.float64)
        AtOnce().tokens(denoiser.head, chunks, uniforms, torch.Generator(), features)

    def loss(self, phase: str, rows: int) -> PassMemory:
        """A loss and its backward pass."""
        network, live = self.networks[phase], self._live()
        live.follow_gradients(network, _blocks(network))
        with live:
            rollout = self.objective.outline(self._canvas(rows))
            self.objective.loss(phase, rollout).sum.backward()
        return live.memory

    def held(self, rows: int) -> float:
        """Bytes of a rollout of so many rows."""
        tensors = _tensors(self.objective.outline(self._canvas(rows)))
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())


def _tensors(held: object) -> Iterator[Tensor]:
    """All tensors in the fields of a rollout, and in those of its canvases."""
    if isinstance(held, Tensor):
        yield held
    elif is_dataclass(held):
        for part in fields(held):
            yield from _tensors(getattr(held, part.name))


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks that a network's parameters lie in, or those below its adapters."""
    inner = next(module for module in network.modules() if isinstance(module, Denoiser) and not _delegates(module))
    return list(inner.base.blocks() if isinstance(inner, AdaptedDenoiser) else inner.blocks())


def _delegates(module: nn.Module) -> bool:
    return isinstance(module, DelegatingDenoiser)


def _fill(networks: list[nn.Module]) -> list[Tensor]:
    """Put parameters and buffers that count as the CPU's in place of those of the meta device; returns all."""
    made: dict[int, Tensor] = {}  # two names of one parameter stay one
    for module in (m for network in networks for m in network.modules()):
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in tables:
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    made[id(made[id(old)])] = made[id(old)]
                tensors[name] = made[id(old)]
    return list({id(t): t for t in made.values()}.values())
