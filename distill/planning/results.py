"""What a plan says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.planning.moments import Moment, host_peak, peak
from distill.planning.setup import Setup
from distill.planning.shapes import Network
from distill.runtime.result_files import json_text
from teachers.files import publish


@dataclass(frozen=True)
class Option:
    """One way to lay out a run, and what it needs.

    Attributes:
        micro: the largest micro-batch that fits; None if none does, and ``setup`` has the smallest.
        overrides: what to write after the config to get it.
    """

    setup: Setup
    micro: int | None
    moments: tuple[Moment, ...]
    overrides: tuple[str, ...]

    @property
    def worst(self) -> Moment:
        """The moment that needs most."""
        return peak(self.moments)

    @property
    def host(self) -> float:
        """The most bytes of the host's memory that the main process needs."""
        return host_peak(self.moments)

    def as_json(self) -> dict[str, Any]:
        """Plain values, bytes."""
        setup = {key: value for key, value in asdict(self.setup).items() if value != float("inf")}
        return {
            "setup": setup, "largest_micro_batch": self.micro, "overrides": self.overrides,
            "worst_moment": self.worst.name, "moments": [asdict(moment) for moment in self.moments],
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a distillation needs of memory, before a weight is loaded.

    Attributes:
        networks: sizes by name, the teacher first. vocabulary: V, the width of logits.
        gpus: devices, one a process. memory: bytes of each. headroom: part of it that may be filled.
        options: the config at each ZeRO stage.
        proposal: the cheapest way that fits; None if none does.
        block_size: of a student that writes in blocks; else None.
    """

    networks: dict[str, Network]
    vocabulary: int
    gpus: int
    memory: float
    headroom: float
    options: tuple[Option, ...]
    proposal: Option | None
    block_size: int | None = None

    def save(self, path: Path) -> Path:
        """Write every term as JSON, whole or not at all."""
        return publish(path, json_text(self.as_json()))

    def as_json(self) -> dict[str, Any]:
        """Plain values, bytes."""
        return {
            "networks": {name: asdict(network) for name, network in self.networks.items()},
            "gpus": self.gpus, "memory": self.memory, "headroom": self.headroom,
            "block_size": self.block_size,
            "options": [option.as_json() for option in self.options],
            "proposal": None if self.proposal is None else self.proposal.as_json(),
        }  # fmt: skip
