"""Training: a student, or the updates that make one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import distill.finished
import distill.models
from distill.config import DataConfig, DistillConfig, OptimizerConfig
from distill.config.blocks import in_own_blocks
from distill.config.overrides import validate
from distill.config.precision import settled
from distill.data.given import GivenRows, data_section
from distill.runtime.cost import Cost
from distill.runtime.world import World, local_device
from distill.training.account import Account
from distill.training.distillation import in_memory, in_run_folder, load_networks
from distill.training.ledger import Ledger
from fewstep.models import Student, Teacher
from fewstep.quiet import quiet
from objectives.blocks import BlocksConfig
from objectives.objective import ObjectiveConfig
from students.adapters import AdapterConfig, merged
from students.samplers import Sampler
from students.student import cast
from teachers.denoiser import Denoiser
from teachers.section import Section


def distil(
    teacher: Teacher,
    objective: ObjectiveConfig,
    *,
    updates: int,
    batch: int,
    length: int | None = None,
    data: str | Path | DataConfig | GivenRows | None = None,
    sampler: Sampler | str | None = None,
    seed: int = 0,
    lr: float | OptimizerConfig = 1e-4,
    critic_lr: float | OptimizerConfig | None = None,
    adapter: AdapterConfig | None = None,
    blocks: BlocksConfig | None = None,
    init: str | Path = "teacher",
    run: str | Path | None = None,
    **train: Any,
) -> Student:
    """Distil a teacher, in this process; without ``run`` in memory alone.

    >>> student = fewstep.distil(teacher, fewstep.IntegralKL(), updates=100, batch=16, length=64)  # doctest: +SKIP
    >>> student.generate("The boat", seed=0).texts  # doctest: +SKIP
    ['The boat bothbywis suppin, wuse--eabin they, told she his whtch,']

    Args:
        teacher: it stays as it is.
        objective: such as ``fewstep.IntegralKL()``.
        updates, batch: how many, of how many rows each.
        length: tokens a row.
        data: what to train on: text, as a file, a folder, ``bundled:novels``, or a ``fewstep.Data``, which can also be
            of prompts; or rows, each a prompt or a mapping with TRL's columns ("prompt" and "completion", or
            "messages"), such as a ``datasets.Dataset``, or columns of them. Without, the teacher writes it.
        sampler: what the student is to be sampled with; ancestral by default.
        seed: the same seed gives the same student.
        lr: Adam's, or a ``fewstep.Optimizer`` with warm-up, decay and clipping.
        critic_lr: of objectives that train a critic; the student's by default.
        adapter: a ``fewstep.Adapter`` (LoRA) to train instead of all weights.
        blocks: a ``fewstep.Blocks``, which gives the student blocks of a size of its own, or says whose text is before
            a block. A teacher with blocks makes a student with the same ones by itself.
        init: a model to start from instead of the teacher.
        run: a new folder for metrics and checkpoints, as `fewstep distill` writes it.
        train: other keys of a config's ``train`` section, such as micro_batch, precision or ema.

    Raises:
        UserError: a value out of range, something that the teacher can not do, or a folder that exists.
        RunError: too many updates in a row were not finite, or a checkpoint could not be written.
    """
    config = configured(
        teacher, objective, updates, batch, length, data, sampler, seed, lr, critic_lr, adapter, blocks, init, train
    )
    if run is None:
        return Distiller.of(teacher, config).train()
    with quiet():
        average = in_run_folder(config, run, loaded=own(teacher, config), signals=False).average
    return finished(teacher, config, average, config.train.updates, Cost.load(Path(run)))


class Distiller:
    """A distillation, update by update, in this process and in memory alone.

    >>> distiller = fewstep.Distiller(teacher, fewstep.Sdtt(), updates=100, batch=16, length=64)  # doctest: +SKIP
    >>> for metrics in distiller:  # doctest: +SKIP
    ...     print(metrics["update"], metrics["student/loss"])
    1 0.0
    2 7.472761108202894e-08
    ...
    >>> distiller.student.generate(steps=8)  # doctest: +SKIP

    Iterating makes the updates that are left and gives, after each, what `fewstep distill` would log of it. One can
    stop, look at `student`, and go on.
    """

    def __init__(
        self,
        teacher: Teacher,
        objective: ObjectiveConfig,
        *,
        updates: int,
        batch: int,
        length: int | None = None,
        data: str | Path | DataConfig | GivenRows | None = None,
        sampler: Sampler | str | None = None,
        seed: int = 0,
        lr: float | OptimizerConfig = 1e-4,
        critic_lr: float | OptimizerConfig | None = None,
        adapter: AdapterConfig | None = None,
        blocks: BlocksConfig | None = None,
        init: str | Path = "teacher",
        **train: Any,
    ):
        """Load what is to be trained; arguments and errors as of `distil`."""
        config = configured(
            teacher, objective, updates, batch, length, data, sampler, seed, lr, critic_lr, adapter, blocks, init, train
        )
        self._start(teacher, config)

    @classmethod
    def of(cls, teacher: Teacher, config: DistillConfig) -> Distiller:
        """The distillation that a config describes, whose teacher is loaded."""
        distiller = cls.__new__(cls)
        distiller._start(teacher, config)
        return distiller

    def _start(self, teacher: Teacher, config: DistillConfig) -> None:
        self.teacher, self.config = teacher, config
        with quiet():
            world = World(0, 1, local_device(0))
            account = Account(world, config.train.seed)
            networks = load_networks(config, own(teacher, config))
            account.charge_teacher(networks.teacher)
            self._trainer = in_memory(config, networks, world)
            account.charge(self._trainer.objective)
        self._ledger = Ledger(self._trainer, account, config.sequence_length)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Make the updates that are left.

        Raises:
            RunError: too many updates in a row were not finite.
        """
        while self._trainer.done < self.config.train.updates:
            yield self.update()

    def update(self) -> dict[str, Any]:
        """Make one more update; its losses, norms of gradients, learning rates, and what the objective measures."""
        with quiet():
            self._ledger.count(self._trainer.update())
            return self._ledger.line()

    def train(self) -> Student:
        """Make all updates that are left; the student."""
        for _ in self:
            pass
        return self.student

    @property
    def student(self) -> Student:
        """The average of the student's weights so far, a model of its own."""
        cost = self._ledger.account.cost()
        return finished(self.teacher, self.config, self._trainer.average(), self._trainer.done, cost)


def configured(
    teacher: Teacher,
    objective: ObjectiveConfig,
    updates: int,
    batch: int,
    length: int | None,
    data: str | Path | DataConfig | GivenRows | None,
    sampler: Sampler | str | None,
    seed: int,
    lr: float | OptimizerConfig,
    critic_lr: float | OptimizerConfig | None,
    adapter: AdapterConfig | None,
    blocks: BlocksConfig | None,
    init: str | Path,
    train: dict[str, Any],
) -> DistillConfig:
    """What `distil` was asked for as a config, checked by the rules that a file is checked by; see there."""
    optimizers = {"student": lr}
    if "critic" in objective.phases:
        optimizers["critic"] = lr if critic_lr is None else critic_lr
    sections = {phase: plain(rate) if isinstance(rate, Section) else {"lr": rate} for phase, rate in optimizers.items()}
    values: dict[str, Any] = {
        "teacher": plain(teacher.config),
        "student": {"init": str(init), "adapter": None if adapter is None else plain(adapter)},
        "objective": plain(objective),
        "sampler": plain(sampler) if isinstance(sampler, Section) else sampler or "ancestral",
        "blocks": {} if blocks is None else plain(blocks),
        "train": {"updates": updates, "batch": batch, "seed": seed, **sections, **train},
    }
    if isinstance(data, DataConfig):
        values["data"] = plain(data)
    elif isinstance(data, str | Path):
        values["data"] = {"path": str(data), "length": length}
    elif data is not None:
        values["data"] = {**data_section(data), "length": length}
    if length is not None:
        values["length"] = length
    return settled(validate(DistillConfig, values))


def plain(section: Section) -> dict[str, Any]:
    """A section as the values that a file would hold."""
    return section.model_dump(mode="json")


def own(teacher: Teacher, config: DistillConfig) -> tuple[Denoiser, Any]:
    """The teacher and its tokenizer; a copy of it where training would cast it, or put adapters into it."""
    denoiser, exact = teacher.denoiser, config.train.precision == "float32"
    coarse = exact and any(parameter.dtype == torch.bfloat16 for parameter in denoiser.parameters())
    if not exact or coarse or config.student.adapter or config.objective.adapters:
        denoiser = copy.deepcopy(denoiser)
    return cast(denoiser, torch.float32) if coarse else denoiser, teacher.tokenizer


def finished(
    teacher: Teacher, config: DistillConfig, average: Denoiser | None, updates: int, cost: Cost | None
) -> Student:
    """The averaged network as a model of its own, any adapter merged into its teacher."""
    assert average is not None  # of the main process, and there is no other
    config = in_own_blocks(config, average.spec)
    made = f"The averaged weights after {updates} updates of `{config.objective.name}` distillation"
    return Student(
        f"student of {teacher.name}",
        distill.finished.Student(
            merged(average).to(local_device(0)),
            teacher.tokenizer,
            config.sequence_length,
            config.teacher.process,
            min(distill.finished.STEPS, config.sampler.one_a_token(config.sequence_length)),
            config.sampler,
            f"{made}; teacher `{config.teacher.path}`.",
            training=cost,
        ),
    )
