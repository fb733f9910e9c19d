"""What a run needs at each ZeRO stage, and the cheapest way that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from distill.config import DistillConfig
from distill.planning.moments import moments, peak
from distill.planning.results import Option, Plan
from distill.planning.setup import Setup, micro_batches, setup_of
from distill.planning.shapes import Networks, Shapes
from distill.runtime.run_folder import flatten
from students.adapters import AdapterConfig
from teachers.checkpointing import Checkpointing

GB = 1e9
HARDER: list[Checkpointing] = [False, "products", True]
"""Kinds of checkpointing, each of which keeps less than the one before it."""
HEADROOM = 0.9
"""Part of a device's memory that a plan may fill: the rest is for CUDA, the collectives and fragmentation [own]."""
WAYS: list[tuple[int | None, bool, Checkpointing]] = [
    (1, False, False), (2, False, False), (1, False, "products"), (2, False, "products"), (1, False, True),
    (2, False, True), (3, False, False), (3, False, True), (2, True, True), (3, True, True),
]  # fmt: skip
"""ZeRO stage, offload and gradient checkpointing, from what costs nothing to what costs most."""
ALONE: list[tuple[int | None, bool, Checkpointing]] = [
    (None, False, False),
    (None, False, "products"),
    (None, False, True),
]
"""The same where torch alone trains, which is tried first."""


def plan(config: DistillConfig, gpus: int, memory: float) -> Plan:
    """What a config needs on ``gpus`` devices of ``memory`` GB (10⁹ bytes), and one proposal.

    Raises:
        UserError: see `Shapes` and `setup_of`.
    """
    shapes, base, limit = Shapes(config), setup_of(config, gpus), memory * GB * HEADROOM
    options, proposal = tuple(stages(shapes, base, limit)), propose(shapes, base, limit)
    networks, blocks = shapes.networks().by_name(), shapes.block_size
    return Plan(networks, shapes.vocabulary, gpus, memory * GB, HEADROOM, options, proposal, blocks)


def stages(shapes: Shapes, base: Setup, limit: float) -> list[Option]:
    """The config on torch alone, where that trains it, and at each ZeRO stage, without and with optimiser offload.

    Each at the largest micro-batch that fits, or the smallest.
    """
    networks, found, smallest = shapes.networks(), [], micro_batches(shapes.config, base.processes)[0]
    zero: list[tuple[int | None, bool]] = [(0, False), (1, False), (2, False), (3, False)]
    alone: list[tuple[int | None, bool]] = [(None, False)] if base.stage is None else []
    for stage, offload in [*alone, *zero, (1, True), (2, True), (3, True)]:
        if stage == 0 and base.width == 2:
            continue  # refused by the config: DeepSpeed is wrong there
        setup = replace(base, stage=stage, offload=offload)
        micro = largest_micro_batch(shapes, networks, setup, limit)
        shown = replace(setup, micro=micro or smallest)
        found.append(Option(shown, micro, tuple(moments(networks, shapes.passes(shown), shown)), ()))
    return found


def propose(shapes: Shapes, base: Setup, limit: float) -> Option | None:
    """The first way that fits, from what costs nothing to what costs most; None if none does.

    First stages 1 and 2, then checkpointing, of what is cheap to compute again and then of all; then stage 3, which
    sends the weights around for every pass, the teacher's too if it must; then the optimiser on the CPU; then adapters.
    """
    adapted = with_adapters(shapes.config, shapes.own_blocks)
    for config in (shapes.config, adapted) if adapted != shapes.config else (shapes.config,):
        networks = shapes.networks(config)
        for setup in _setups(base):
            if peak(moments(networks, None, setup)).total() > limit:
                continue  # not even without any activations
            micro = largest_micro_batch(shapes, networks, setup, limit, config)
            if micro is not None:
                setup = replace(setup, micro=micro)
                needs = tuple(moments(networks, shapes.passes(setup, config), setup))
                words = setup_overrides(setup, base) + adapter_overrides(shapes.config, config)
                return Option(setup, micro, needs, tuple(words))
    return None


def _setups(base: Setup) -> Iterator[Setup]:
    """Ways to try, in this order."""
    placements = ("replicated", "sharded") if base.placement == "replicated" else (base.placement,)
    for placement in placements:
        for width in (4, 2) if base.width == 4 else (2,):
            for stage, offload, checkpointing in [*ALONE, *WAYS] if base.stage is None else WAYS:
                as_little = HARDER.index(checkpointing) >= HARDER.index(base.checkpointing)
                if as_little and not (stage is None and placement == "sharded"):
                    yield replace(
                        base, stage=stage, offload=offload, checkpointing=checkpointing, placement=placement,
                        width=width,
                    )  # fmt: skip


def largest_micro_batch(
    shapes: Shapes, networks: Networks, setup: Setup, memory: float, config: DistillConfig | None = None
) -> int | None:
    """The largest micro-batch whose peak stays within ``memory`` bytes; None if none does."""
    choices = micro_batches(shapes.config, setup.processes)
    best = None
    while choices:  # memory grows with the rows: halve what is left
        middle = len(choices) // 2
        tried = replace(setup, micro=choices[middle])
        if peak(moments(networks, shapes.passes(tried, config), tried)).total() <= memory:
            best, choices = choices[middle], choices[middle + 1 :]
        else:
            choices = choices[:middle]
    return best


def with_adapters(config: DistillConfig, own_blocks: bool = False) -> DistillConfig:
    """The config with adapters of the default rank for the student, and for the critic where there is one.

    Args:
        own_blocks: the student has other blocks than the teacher, so it can be no adapter on it.
    """
    adapter = AdapterConfig()
    student = config.student
    if student.adapter is None and not own_blocks:
        student = student.model_copy(update={"adapter": adapter, "init": "teacher"})
    return config.model_copy(update={"student": student, "objective": config.objective.with_adapter(adapter)})


def setup_overrides(setup: Setup, base: Setup) -> list[str]:
    """What to write after the config to get ``setup``; ``base`` is what the config says."""
    zero = "deepspeed.zero_optimization"
    words = [f"train.micro_batch={setup.micro}"]
    if setup.stage is not None:
        words.append(f"{zero}.stage={setup.stage}")
    if setup.width != base.width:
        words.append("train.precision=bfloat16")
    if setup.checkpointing != base.checkpointing:
        words.append(f"train.gradient_checkpointing={str(setup.checkpointing).lower()}")
    if setup.offload and not base.offload:
        words.append(f"{zero}.offload_optimizer.device=cpu")
    if setup.placement != base.placement:
        words.append(f"teacher.placement={setup.placement}")
    return words


def adapter_overrides(before: DistillConfig, after: DistillConfig) -> list[str]:
    """What to write after the config to get its adapters: each stands where there was none."""
    sections = ("student", "objective")
    old, new = (flatten(c.model_dump(mode="json", include=set(sections))) for c in (before, after))
    rank = AdapterConfig().rank
    return [f"'{key}={{rank: {rank}}}'" for key in old if key not in new]
