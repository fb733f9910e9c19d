"""How a student was trained: losses, gradients, and what the watch measured on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from distill.config import EvaluateConfig
from distill.evaluation.results import Axis as Entropy
from distill.pages.chart import Axis, Chart, Curve, Level, Mark

Lines = Sequence[dict[str, Any]]
"""Of metrics.jsonl."""
PHASES = {"student": "student", "critic": "critic"}
WATCH = ("", "teacher_")
WATCHED = ("judge_perplexity", "relative_perplexity", "bigram_entropy")
AS_VARIED = "watch/teacher_at_{}_entropy"
APART = {"update", "seconds", "updates_per_second", "tokens", "tokens_per_second", "skipped"}


def training_charts(lines: Lines, settings: EvaluateConfig, best: int | None, owner: str = "") -> list[Chart]:
    """Losses, norms of gradients, and the watch; what no line holds is left out.

    Args:
        settings: of the watch.
        best: the update that it marked best, if it marked one.
    """
    charts = [
        _phases(lines, "loss", "Loss", "What is minimised; of most objectives its height says little.", False, owner),
        _phases(
            lines, "grad_norm", "Norm of the gradient", "A norm that keeps growing comes before most collapses.", True,
            owner,
        ),
        *(_watched(lines, what, best, settings, owner) for what in WATCHED),
    ]  # fmt: skip
    return [chart for chart in charts if chart.curves]


def other_training_charts(lines: Lines, owner: str = "") -> list[Chart]:
    """Whatever else was logged, a plot for each figure."""
    shown = {f"{phase}/{what}" for phase in PHASES for what in ("loss", "grad_norm")}
    shown |= {f"watch/{prefix}{what}" for prefix in WATCH for what in WATCHED}
    shown |= {AS_VARIED.format(axis) for axis in get_args(Entropy)}
    names = dict.fromkeys(name for line in lines for name in line if name not in APART | shown)
    charts = [
        Chart(
            name=name.replace("/", ": ").replace("_", " "),
            caption="As it was logged.",
            x=Axis("updates"),
            y=Axis(name.rpartition("/")[2].replace("_", " ")),
            curves=(Curve("", PHASES.get(name.partition("/")[0], "plain"), marks, dots=len(marks) < 40),),
            owner=owner,
        )
        for name in names
        if len(marks := _marks(lines, name)) > 1
    ]
    return charts


def _phases(lines: Lines, what: str, name: str, caption: str, log: bool, owner: str) -> Chart:
    """One figure of every network that is trained."""
    curves = [
        Curve(phase, tone, marks, dots=len(marks) < 40)
        for phase, tone in PHASES.items()
        if (marks := _marks(lines, f"{phase}/{what}"))
    ]
    return Chart(name, caption, Axis("updates"), Axis(name.lower(), log=log), tuple(curves), owner=owner)


def _watched(lines: Lines, what: str, best: int | None, settings: EvaluateConfig, owner: str) -> Chart:
    """What the watch measured of the averaged student, beside the teacher's own in as many steps."""
    student, teacher = (_marks(lines, f"watch/{prefix}{what}") for prefix in WATCH)
    curves = [Curve("student", "student", student, shape="diamond")] if student else []
    curves += _as_varied(lines) if what == "judge_perplexity" else []
    levels = [Level("teacher", "teacher", teacher[0].y)] if teacher else []
    told = f"The averaged student in {settings.watch_steps} steps, {settings.watch_samples} texts."
    if what == "bigram_entropy" and teacher:
        entropy = teacher[0].y
        levels.append(
            Level(f"floor, {settings.entropy_floor:.0%} of the teacher's", "plain", settings.entropy_floor * entropy)
        )
        told += (
            " A checkpoint below the floor is never marked best, and the run ends at "
            f"{settings.collapse:.0%} of the teacher's."
        )
    elif what == "relative_perplexity":
        levels.append(Level("teacher, as varied as the student", "teacher", 1.0))
        told += (
            " Its perplexity over the teacher's at equal entropy, on the axis that claims less: the best "
            "checkpoint has the lowest, or, where passes are reduced, the fewest passes at no more than the start's."
        )
    else:
        told += " Lower is better at equal entropy, so the teacher is also read where its entropy is the student's."
    if best is not None and student:
        levels.append(Level(f"best checkpoint, update {best:,}", "real", best, upright=True))
    log = what != "bigram_entropy"
    return Chart(
        f"Watch: {what.replace('_', ' ')}", told, Axis("updates"), Axis(what.replace("_", " "), log=log),
        tuple(curves), tuple(levels), owner,
    )  # fmt: skip


def _as_varied(lines: Lines) -> list[Curve]:
    """The teacher's perplexity where its entropy is what the student's was."""
    return [
        Curve(f"teacher at the student's {axis} entropy", "teacher", marks, dashed=axis == "unigram")
        for axis in get_args(Entropy)
        if (marks := _marks(lines, AS_VARIED.format(axis)))
    ]


def _marks(lines: Lines, name: str) -> tuple[Mark, ...]:
    return tuple(
        Mark(line["update"], line[name], f"update {line['update']:,}: {line[name]:.5g}")
        for line in lines
        if "update" in line and isinstance(line.get(name), int | float)
    )
