"""`fewstep plan`: a table of memory, ZeRO stage by stage, and one proposal, before a weight is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from distill.config import DistillConfig
from distill.config.precision import settled
from distill.planning.live_memory import PassMemory
from distill.planning.plan import (
    Moment,
    Setup,
    Shapes,
    host_peak,
    largest_micro_batch,
    micro_batches,
    moments,
    peak,
    setup_of,
)
from distill.runtime.messages import say
from distill.runtime.progress import console
from students.adapters import AdapterConfig
from teachers.errors import UserError

GB = 1e9
HEADROOM = 0.9
"""Part of a device's memory that a plan may fill: the rest is for CUDA, the collectives and fragmentation [own]."""
GROUPS = {
    "masters, Adam": ("in float32", "Adam"),
    "average": ("average",),
    "gradients, buckets": ("gradients", "bucket", "staging", "one parameter"),
    "logits": ("logits",),
    "activations": ("activations",),
    "weights": ("",),
}
"""Columns of the table, and what the names of their terms hold; the first that fits."""

NO_PASSES = dict.fromkeys(("rollout", "critic", "student"), PassMemory())


@dataclass(frozen=True)
class Option:
    """One way to lay out a run, and what it needs; ``micro`` is the largest micro-batch that fits, or None."""

    setup: Setup
    micro: int | None
    moments: list[Moment]
    overrides: list[str]


def plan_command(config: DistillConfig, gpus: int, memory: float, out: Path | None) -> None:
    """Print the table and the proposal; write everything as JSON to ``out``.

    Args:
        memory: of a device, in GB (10⁹ bytes).

    Raises:
        UserError: see `Shapes` and `setup_of`; ``out`` exists or cannot be written.
    """
    if out is not None and out.exists():
        raise UserError(f"{out} exists; name another file with --json")
    assumed = " (assumed for auto)" if config.train.precision == "auto" else ""
    config = settled(config, faster=lambda: "bfloat16")  # what is planned for is another machine
    shapes, base = Shapes(config), setup_of(config, gpus)
    with console.status("running the passes without data"):
        options = stages(shapes, base, memory * GB * HEADROOM)
        chosen = propose(shapes, base, memory * GB * HEADROOM)
    networks = shapes.networks()
    console.print(
        f"teacher {networks.teacher.total / 1e6:,.1f} M parameters; trained: student "
        f"{networks.student.trained / 1e6:,.1f} M, critic {networks.critic.trained / 1e6:,.1f} M; {gpus} devices of "
        f"{memory:g} GB, filled to {HEADROOM:.0%}; train.precision {config.train.precision}{assumed}, rows of "
        f"{config.sequence_length} tokens; a row's logits, were they not in chunks, would be "
        f"{config.sequence_length * shapes.teacher.vocab_size * 4 / GB:,.1f} GB a copy",
        highlight=False,
    )
    console.print(table(options))
    text = proposal(chosen, memory)
    say(text)
    if out is not None:
        report = {
            "networks": asdict(networks), "gpus": gpus, "memory": memory * GB, "headroom": HEADROOM,
            "options": [as_json(option) for option in options],
            "proposal": None if chosen is None else as_json(chosen),
        }  # fmt: skip
        try:
            out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise UserError(f"cannot write {out} ({error.strerror}); name another file with --json") from error


def stages(shapes: Shapes, base: Setup, limit: float) -> list[Option]:
    """The config at each ZeRO stage, without and with optimiser offload, at the largest micro-batch that fits, or 1."""
    networks, found, smallest = shapes.networks(), [], micro_batches(shapes.config, base.processes)[0]
    for stage, offload in ((0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)):
        if stage == 0 and base.width == 2:
            continue  # refused by the config: DeepSpeed is wrong there
        setup = replace(base, stage=stage, offload=offload)
        micro = largest_micro_batch(shapes, networks, setup, limit)
        shown = replace(setup, micro=micro or smallest)
        found.append(Option(shown, micro, moments(networks, shapes.passes(shown), shown), []))
    return found


def propose(shapes: Shapes, base: Setup, limit: float) -> Option | None:
    """The first way that fits, from what costs nothing to what costs most; None if none does.

    First stages 1 and 2, then checkpointing, which computes every activation twice; then stage 3, which sends the
    weights around for every pass, the teacher's too if it must; then the optimiser on the CPU; then adapters.
    """
    config = shapes.config
    adapters = config.student.adapter is not None and config.objective.adapters
    wholes = [(1, False, False), (2, False, False), (1, False, True), (2, False, True)]
    wholes += [(3, False, False), (3, False, True), (2, True, True), (3, True, True)]
    for adapted in (False,) if adapters else (False, True):
        changed = with_adapters(config) if adapted else config
        networks = shapes.networks(changed)
        for placement in (base.placement,) if base.placement != "replicated" else ("replicated", "sharded"):
            for width in (4, 2) if base.width == 4 else (2,):
                for stage, offload, checkpointing in wholes:
                    if base.checkpointing and not checkpointing:
                        continue
                    setup = replace(
                        base,
                        stage=stage,
                        offload=offload,
                        checkpointing=checkpointing,
                        placement=placement,
                        width=width,
                    )
                    if peak(moments(networks, NO_PASSES, setup)).total() > limit:
                        continue  # not even without any activations
                    micro = largest_micro_batch(shapes, networks, setup, limit, changed)
                    if micro is not None:
                        setup = replace(setup, micro=micro)
                        found = moments(networks, shapes.passes(setup, changed), setup)
                        return Option(setup, micro, found, overrides(setup, base, adapted))
    return None


def with_adapters(config: DistillConfig) -> DistillConfig:
    """The config with adapters of the default rank for student and critic."""
    adapter = AdapterConfig()
    return config.model_copy(
        update={
            "student": config.student.model_copy(
                update={"adapter": config.student.adapter or adapter, "init": "teacher"}
            ),
            "objective": config.objective.with_adapter(adapter),
        }
    )


def overrides(setup: Setup, base: Setup, adapted: bool) -> list[str]:
    """What to write after the config to get ``setup``; ``base`` is what the config says."""
    zero = "deepspeed.zero_optimization"
    words = [f"train.micro_batch={setup.micro}", f"{zero}.stage={setup.stage}"]
    if setup.width != base.width:
        words.append("train.precision=bfloat16")
    if setup.checkpointing and not base.checkpointing:
        words.append("train.gradient_checkpointing=true")
    if setup.offload and not base.offload:
        words.append(f"{zero}.offload_optimizer.device=cpu")
    if setup.placement != base.placement:
        words.append(f"teacher.placement={setup.placement}")
    if adapted:
        rank = AdapterConfig().rank
        words += [f"'student.adapter={{rank: {rank}}}'", f"'objective.ratio.adapter={{rank: {rank}}}'"]
    return words


def proposal(option: Option | None, memory: float) -> str:
    """One paragraph: the overrides and the reason."""
    if option is None:
        return (
            f"Nothing fits {memory:g} GB, adapters included: use devices with more memory, a smaller teacher, shorter "
            "rows, or teacher.placement=dispatched, which keeps layers on the CPU."
        )
    most = peak(option.moments)
    parts = ", ".join(f"{k} {v / GB:.1f}" for k, v in grouped(most).items() if v >= 0.05 * GB)
    return (
        f"Proposed: {' '.join(option.overrides)}\n"
        f"because it is the cheapest way that fits: {most.total() / GB:.1f} of {memory:g} GB at the worst moment "
        f"({most.name}: {parts}), and {host_peak(option.moments) / GB:.1f} GB of host memory for the main process."
    )


def grouped(moment: Moment) -> dict[str, float]:
    """Bytes of a moment by column of the table."""
    found = dict.fromkeys(GROUPS, 0.0)
    for term, size in moment.device.items():
        plain = term.replace("then: ", "")
        column = next(c for c, marks in GROUPS.items() if any(mark in plain for mark in marks))
        found[column] += size
    return found


def table(options: list[Option]) -> Table:
    """One line a ZeRO stage: GB on rank 0's device at the worst moment of an update, by term, and at the start."""
    shown = Table(
        title="GB per rank at the worst moment of training, at the micro-batch of the last column or the smallest",
        title_justify="left",
    )
    shown.add_column("ZeRO")
    for name in (*GROUPS, "sum", "worst moment", "start", "host", "largest micro-batch"):
        shown.add_column(name, justify="left" if name == "worst moment" else "right")
    for option in options:
        start = [moment for moment in option.moments if moment.name.startswith("start")]
        most = peak([moment for moment in option.moments if moment not in start])
        columns = [f"{size / GB:.1f}" for size in grouped(most).values()]
        stage = f"{option.setup.stage}{' + offload' if option.setup.offload else ''}"
        fits = "none" if option.micro is None else str(option.micro)
        first = f"{peak(start).total() / GB:.1f}"
        host = f"{host_peak(option.moments) / GB:.1f}"
        shown.add_row(stage, *columns, f"{most.total() / GB:.1f}", most.name, first, host, fits)
    return shown


def as_json(option: Option) -> dict[str, Any]:
    """Plain values, bytes."""
    setup = {key: value for key, value in asdict(option.setup).items() if value != float("inf")}
    return {
        "setup": setup, "largest_micro_batch": option.micro, "overrides": option.overrides,
        "worst_moment": peak(option.moments).name, "moments": [asdict(moment) for moment in option.moments],
    }  # fmt: skip
