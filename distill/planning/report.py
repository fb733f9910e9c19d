"""A plan as people read it."""

from __future__ import annotations

from rich.table import Table

from distill.config import DistillConfig
from distill.planning.moments import Moment, peak
from distill.planning.propose import GB
from distill.planning.results import Option, Plan

GROUPS = {
    "masters, Adam": ("in float32", "Adam"),
    "average": ("average",),
    "gradients, buckets": ("gradients", "bucket", "staging", "one parameter"),
    "logits": ("logits",),
    "activations": ("activations",),
    "weights": ("",),
}
"""Columns of the table, and what the names of their terms hold; the first that fits."""


def heading(plan: Plan, config: DistillConfig, assumed: bool) -> str:
    """What is planned for.

    Args:
        assumed: the precision was "auto".
    """
    sizes = dict(plan.networks)
    teacher = sizes.pop("teacher")
    trained = [f"{name} {n.trained / 1e6:,.1f} M" for name, n in sizes.items() if n.trained]
    kept = [f"{name} {n.total / 1e6:,.1f} M" for name, n in sizes.items() if not n.trained]
    told = " (assumed for auto)" if assumed else ""
    blocks = "" if plan.block_size is None else f" in blocks of {plan.block_size}"
    length = config.sequence_length
    return (
        f"teacher {teacher.total / 1e6:,.1f} M parameters; trained: {', '.join(trained)}"
        f"{'; kept beside them: ' + ', '.join(kept) if kept else ''}; {plan.gpus} devices of "
        f"{plan.memory / GB:g} GB, filled to {plan.headroom:.0%}; train.precision {config.train.precision}{told}, "
        f"rows of {length} tokens{blocks}; a row's logits, were they not in chunks, would be "
        f"{length * plan.vocabulary * 4 / GB:,.1f} GB a copy"
    )


def proposal_text(option: Option | None, memory: float) -> str:
    """One paragraph: the overrides and the reason.

    Args:
        memory: of a device, in bytes.
    """
    if option is None:
        return (
            f"Nothing fits {memory / GB:g} GB, adapters included: use devices with more memory, a smaller teacher, "
            "shorter rows, or teacher.placement=dispatched, which keeps layers on the CPU."
        )
    most = option.worst
    parts = ", ".join(f"{k} {v / GB:.1f}" for k, v in grouped(most).items() if v >= 0.05 * GB)
    return (
        f"Proposed: {' '.join(option.overrides)}\n"
        f"because it is the cheapest way that fits: {most.total() / GB:.1f} of {memory / GB:g} GB at the worst moment "
        f"({most.name}: {parts}), and {option.host / GB:.1f} GB of host memory for the main process."
    )


def grouped(moment: Moment) -> dict[str, float]:
    """Bytes of a moment by column of the table."""
    found = dict.fromkeys(GROUPS, 0.0)
    for term, size in moment.device.items():
        plain = term.replace("then: ", "")
        column = next(c for c, marks in GROUPS.items() if any(mark in plain for mark in marks))
        found[column] += size
    return found


def table(options: tuple[Option, ...]) -> Table:
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
        stage = "none" if option.setup.stage is None else str(option.setup.stage)
        stage += " + offload" * option.setup.offload
        fits = "none" if option.micro is None else str(option.micro)
        first = f"{peak(start).total() / GB:.1f}"
        host = f"{option.host / GB:.1f}"
        shown.add_row(stage, *columns, f"{most.total() / GB:.1f}", most.name, first, host, fits)
    return shown
