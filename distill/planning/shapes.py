"""The networks of a distillation without their weights: sizes, and the memory of their passes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.config import DistillConfig
from distill.config.blocks import in_own_blocks
from distill.config.deepspeed import zero_section
from distill.models import as_distillation, check_adapter_blocks, options_of
from distill.planning.live_memory import GroupedProducts
from distill.planning.passes import Passes, pass_memory
from distill.planning.setup import Setup
from distill.training.wiring import has_other_blocks, wired
from objectives.objective import Objective
from students.adapters import AdaptedDenoiser
from students.student import frozen, trainable_copy
from teachers.capability import Capability
from teachers.convert import in_blocks
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.families import Checkpoint, named_family, recognise
from teachers.source import parse_source, read_object, reason

NEEDED: tuple[Capability, ...] = ("planning", "absorbing process")
"""Of a teacher and a student that a plan is made for."""


@dataclass(frozen=True)
class Network:
    """Sizes of a network, in parameters.

    Attributes:
        trained, frozen: what an engine holds; an adapter's base is the teacher and counted there.
        largest: of one trained parameter.
        small: of all parameters that ZeRO 3 keeps whole, see ``stage3_param_persistence_threshold``.
    """

    trained: int
    frozen: int
    largest: int
    small: int

    @property
    def total(self) -> int:
        """Trained and frozen."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class Networks:
    """All networks of a distillation; those on adapters count without their base, which is the teacher.

    Attributes:
        trained: by phase, in the order of the phases; the student is one.
        kept: frozen ones beside the teacher, by name.
        saved: names of those that checkpoints hold.
    """

    teacher: Network
    trained: dict[str, Network]
    kept: dict[str, Network]
    saved: tuple[str, ...] = ()

    @property
    def student(self) -> Network:
        """What is distilled."""
        return self.trained["student"]

    def by_name(self) -> dict[str, Network]:
        """All, the teacher first."""
        return {"teacher": self.teacher, **self.trained, **self.kept}


def read_sizes(name: str, family: str | None = None) -> Checkpoint:
    """A model of which there need be no more than its config.json: a folder, that file itself, or ``bundled:NAME``.

    Args:
        family: its name, for one that does not say it.

    Raises:
        UserError: there is none, or its family can not be planned for.
    """
    source = parse_source(name)
    path = Path(source.path)
    path = path / "config.json" if path.is_dir() else path
    if source.revision is not None or path.name != "config.json" or not path.is_file():
        raise UserError(f"{name!r} is no folder with a config.json; download that one file and give its path")
    config = read_object(path)
    found = recognise(config, name, path.parent) if family is None else named_family(family)
    checkpoint = Checkpoint(name, path.parent, config, found)
    why = "fewstep plan makes networks from their sizes; choose a model of such a family"
    checkpoint.require(dict.fromkeys(NEEDED, why))
    return checkpoint


def _sketch(checkpoint: Checkpoint, config: DistillConfig, blocks: int | None = None) -> Denoiser:
    """A denoiser without weights, with so many blocks, all by default; the teacher's options are its own alone."""
    given = options_of(config.teacher) if checkpoint.name == config.teacher.path else {}
    options = {key: value for key, value in given.items() if value is not None}
    checkpoint.check_options(options, "teacher.")
    return checkpoint.family.sketch(checkpoint, blocks, **options)


class Shapes:
    """The networks of a config as shapes: their sizes, and the memory of their passes at any micro-batch."""

    def __init__(self, config: DistillConfig, device: str = "cuda"):
        """Read the config.json of teacher and student.

        Args:
            device: the type of what trains, "cpu" or another one.

        Raises:
            UserError: see `read_sizes`; rows are longer than the teacher's positions, or it is autoregressive.
        """
        self.config, self.device = config, device
        self.teacher = read_sizes(config.teacher.path, config.teacher.family)
        self.student = None if config.student.init == "teacher" else read_sizes(config.student.init)
        teacher, objective = self._objective(config, None)
        self.blocks, self.vocabulary, longest = len(teacher.blocks()), teacher.spec.vocabulary, teacher.spec.max_length
        if config.sequence_length > longest:
            raise UserError(
                f"rows of {config.sequence_length} tokens are longer than the teacher's {longest} positions"
            )
        self.block_size = objective.student.spec.block_size
        self.own_blocks = has_other_blocks(objective.student.spec, teacher.spec)
        self._passes: dict[tuple[Any, ...], Passes] = {}

    def networks(self, config: DistillConfig | None = None) -> Networks:
        """Exact sizes; of another config of the same shapes, such as one with adapters."""
        config = config or self.config
        threshold = float(zero_section(config.deepspeed).get("stage3_param_persistence_threshold", 1e5))
        teacher, objective = self._objective(config, None)
        sizes = {name: _sizes(network, threshold) for name, network in objective.networks.items()}
        return Networks(
            teacher=_sizes(teacher, threshold),
            trained={phase: sizes.pop(phase) for phase in objective.phases},
            kept=sizes,
            saved=("target",) if objective.target is not None else (),
        )

    def passes(self, setup: Setup, config: DistillConfig | None = None) -> Passes:
        """Memory of the rollout and of all phases' passes.

        All layers are alike, so every peak is linear in their number and two depths give any: deep enough that the
        blocks that an objective treats unlike the others are not all there are.
        """
        config = config or self.config
        precision = "bfloat16" if setup.width == 2 else "float32"
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
        adapters = config.student.adapter, config.objective.model_dump_json()
        key = (setup.share, setup.micro, setup.checkpointing, setup.width, repr(adapters))
        if key not in self._passes:
            layers, least = self.blocks, max(3, config.objective.counted_blocks + 2)
            if layers <= least or self.student is not None:
                self._passes[key] = self._trace(config, setup, None)
            else:
                deep, shallow = (self._trace(config, setup, depth) for depth in (least, least - 1))
                self._passes[key] = deep.grown(shallow, layers - least)
        return self._passes[key]

    def _trace(self, config: DistillConfig, setup: Setup, layers: int | None) -> Passes:
        teacher, objective = self._objective(config, layers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks that tensors without data have no address
            rows, micro, checkpointing = setup.share, setup.micro, setup.checkpointing
            return pass_memory(config, teacher, objective, rows, micro, checkpointing, self.device)

    def _objective(self, config: DistillConfig, layers: int | None) -> tuple[Denoiser, Objective]:
        """The teacher, and the networks as `distill.commands.distil` wires them, without weights."""
        try:
            with torch.device("meta"), GroupedProducts():
                teacher = frozen(_sketch(self.teacher, config, layers))
                student = self._trained(config, teacher, layers)
                start = None
                if has_other_blocks(student.spec, teacher.spec) and not config.objective.adapters:
                    start = student
                config = in_own_blocks(config, student.spec, teacher.spec)
                config = config.model_copy(update={"objective": config.objective.without_weights()})
                return teacher, wired(config, as_distillation(config, teacher, student, start))
        except UserError:
            raise
        except Exception as error:  # transformers and torch raise what they meet first
            raise UserError(
                f"no model can be made from the shape in {config.teacher.path!r} ({reason(error)}); correct it"
            ) from error

    def _trained(self, config: DistillConfig, teacher: Denoiser, layers: int | None) -> Denoiser:
        if config.student.adapter is not None:
            check_adapter_blocks(config, teacher.spec)
            return AdaptedDenoiser(teacher, config.student.adapter)
        first, name = teacher, config.teacher.path
        if self.student is not None:
            first, name = _sketch(self.student, config, layers), config.student.init
        return in_blocks(trainable_copy(first), config.blocks.size, name)


def _sizes(network: nn.Module, threshold: float) -> Network:
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    every = [p.numel() for p in network.parameters()]
    return Network(
        sum(trained), sum(every) - sum(trained), max(trained, default=0), sum(n for n in every if n < threshold)
    )
