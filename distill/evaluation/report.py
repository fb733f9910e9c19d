"""An evaluation as people read it: a table on the terminal, a table in a model card, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distill.comparison.compare import measure
from students.samplers import SAMPLERS
from teachers.files import publish

COLUMNS = [
    "model", "steps", "NFE", "critic NFE", "judge PPL", "95% interval", "unigram H", "bigram H", "distinct-2",
    "seconds", "tokens/s",
]  # fmt: skip
AXES = {
    "judge_perplexity": "judge perplexity",
    "excess_nats": "nats per token above the source's entropy",
    "divergence_nats": "bound on KL to the source, nats a token",
}
DIVERGENCE = "divergence: an upper bound on KL to the source, nats a token"
COLOURS = {"teacher": "#3b6fb6", "student": "#d1495b", "real text": "#4f7a52"}


def columns(result: dict[str, Any]) -> list[str]:
    """`COLUMNS`, and what is worth one more.

    With an adaptive sampler, whose passes differ from row to row, how they are distributed; where the judge knows the
    source, the excess over its entropy and, where there is one, the divergence from it, nats a token.
    """
    names = list(COLUMNS)
    if "source_entropy" in result["judge"]:
        names.insert(names.index("unigram H"), "excess")
    if _divergence(result):
        names.insert(names.index("unigram H"), "divergence")
    if _adaptive(result):
        names[names.index("critic NFE") : names.index("critic NFE")] = ["NFE median", "NFE p95"]
    return names


def _adaptive(result: dict[str, Any]) -> bool:
    return SAMPLERS[result["sampling"]["sampler"]].adaptive


def _divergence(result: dict[str, Any]) -> bool:
    return any("divergence_nats" in row for row in result["rows"])


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """Cells under `columns`: real text first, then teacher, then student; "–" where nothing applies."""
    rows = []
    adaptive, divergence = _adaptive(result), _divergence(result)
    if result["reference"] is not None:
        rows.append(
            ["real text", "–", "–", *["–", "–"] * adaptive, "–", *_quality(result["reference"], divergence), "–", "–"]
        )
    for row in result["rows"]:
        passes = [row["nfe"], *([row["nfe_median"], row["nfe_p95"]] if adaptive else []), row["critic_nfe"]]
        cost = [row["model"], str(row["steps"]), *(f"{n:.1f}" for n in passes)]
        rows.append([*cost, *_quality(row, divergence), f"{row['seconds']:.1f}", f"{row['tokens_per_second']:,.0f}"])
    return rows


def _quality(row: dict[str, Any], divergence: bool) -> list[str]:
    low, high = row["judge_perplexity_ci"]
    interval = f"{perplexity_text(low)}–{perplexity_text(high)}"
    entropies = [f"{row['unigram_entropy']:.3f}", f"{row['bigram_entropy']:.3f}", f"{row['distinct_2']:.3f}"]
    excess = [f"{row['excess_nats']:.4f}"] if "excess_nats" in row else []
    return [perplexity_text(row["judge_perplexity"]), interval, *excess, *[_bound(row)] * divergence, *entropies]


def _bound(row: dict[str, Any]) -> str:
    """The divergence ± half its 95% interval."""
    if "divergence_nats" not in row:
        return "–"
    low, high = row["divergence_nats_ci"]
    return f"{row['divergence_nats']:.4f} ± {(high - low) / 2:.4f}"


def perplexity_text(value: float) -> str:
    """A perplexity to three or four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def caption(result: dict[str, Any]) -> str:
    """One line: what was sampled, how, and who judged."""
    sampling, judge = result["sampling"], result["judge"]
    read = ", retokenized" if judge["retokenized"] else ""
    known = f", source entropy {judge['source_entropy']:.4f} a token" if "source_entropy" in judge else ""
    bound = f"; {DIVERGENCE}" if _divergence(result) else ""
    return (
        f"{sampling['samples']} samples of {sampling['length']} tokens a row; {samplers(result)} sampler, "
        f"{sampling['draw']} draws, {sampling['precision']}; judge {judge['name']} "
        f"({judge['parameters'] / 1e6:,.1f} M parameters{read}{known}){bound}; entropies in nats; "
        "NFE: mean passes a sequence"
    )


def samplers(result: dict[str, Any]) -> str:
    """The rows' sampler, or where they differ each with whose it is."""
    curves, limit = _curves(result)
    used: dict[str, list[str]] = {}
    for name, rows in [*curves.items(), *([(f"teacher at {limit['steps']:,} steps", [limit])] if limit else [])]:
        used.setdefault(rows[-1]["sampler"], []).append(name)
    if len(used) == 1:
        return next(iter(used))
    return "; ".join(f"{sampler} ({', '.join(names)})" for sampler, names in used.items())


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table on standard output, or on ``console``."""
    table = Table(title="Quality against steps", caption=caption(result), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns(result):
        heading = column.replace(" ", "\n")
        table.add_column(heading, justify="left" if column == "model" else "right", no_wrap=True)
    before = None
    for cells in table_rows(result):
        if before not in (None, cells[0]):
            table.add_section()
        before = cells[0]
        table.add_row(*cells, style="bold" if cells[0] == "student" else None)
    console = console or Console()
    # a narrow terminal wraps the lines; cutting figures off would be worse
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def markdown_table(result: dict[str, Any]) -> str:
    """The same table in Markdown, its caption below; for model cards."""
    names = columns(result)
    lines = [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in table_rows(result)]
    return "\n".join([*lines, "", caption(result)]) + "\n"


def plot_evaluation(result: dict[str, Any], path: Path) -> None:
    """Draw quality (see `measure`) and bigram entropy against steps; the PNG is written whole or not at all.

    The teacher at more steps than the student is tried at is a horizontal line, and so is real text.
    """
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2)
    curves, limit = _curves(result)
    quality = measure(result["rows"])
    for axes, key in ((left, quality), (right, "bigram_entropy")):
        for model, rows in curves.items():
            steps = [row["steps"] for row in rows]
            axes.plot(
                steps,
                [row[key] for row in rows],
                color=COLOURS[model],
                marker="o",
                markersize=5,
                linewidth=2,
                label=model,
            )
            if key == quality:
                low, high = zip(*(row[f"{quality}_ci"] for row in rows), strict=True)
                axes.fill_between(steps, low, high, color=COLOURS[model], alpha=0.2, linewidth=0)
        if limit is not None:
            label = f"teacher, {limit['steps']:,} steps"
            axes.axhline(limit[key], color=COLOURS["teacher"], linestyle="--", linewidth=1.4, label=label)
        if result["reference"] is not None and key in result["reference"]:
            axes.axhline(
                result["reference"][key], color=COLOURS["real text"], linestyle=":", linewidth=1.8, label="real text"
            )
        ticks = sorted({row["steps"] for rows in curves.values() for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("sampling steps")
        axes.minorticks_off()
        axes.grid(alpha=0.25, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    if all(row[quality] > 0 for row in result["rows"]):
        left.set_yscale("log")
        plain_log_ticks(left.yaxis)
    left.set_ylabel(f"{AXES[quality]} (lower is better)")
    left.set_title("Quality", loc="left", fontweight="bold")
    right.set_ylabel("bigram entropy (nats)")
    right.set_title("Diversity", loc="left", fontweight="bold")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    sampling = result["sampling"]
    figure.supxlabel(
        f"{sampling['samples']} samples of {sampling['length']} tokens, {samplers(result)} sampler, "
        f"{sampling['draw']} draws; band: 95% bootstrap interval",
        fontsize=8.5, color="#555555",
    )  # fmt: skip
    save_figure(figure, path)


def plot_training(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw what metrics.jsonl holds against updates: the losses, and what the watch measured of student and teacher."""
    names = ["student/loss", "critic/loss", "watch/judge_perplexity", "watch/bigram_entropy"]
    present = [name for name in names if any(name in line for line in lines)]
    if not present:
        return
    figure = new_figure(4 * len(present), 3.4)
    for axes, name in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        teacher = name.replace("watch/", "watch/teacher_")
        for key, who in ((name, "student"), (teacher, "teacher")):
            points = [(line["update"], line[key]) for line in lines if key in line]
            if points and (key == name or teacher != name):
                axes.plot(*zip(*points, strict=True), color=COLOURS[who], linewidth=1.6, label=who)
        axes.set_title(name.removeprefix("watch/").replace("_", " "), loc="left", fontweight="bold", fontsize=10)
        axes.set_xlabel("update")
        axes.grid(alpha=0.25, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if teacher != name:
            axes.legend(frameon=False, fontsize=8.5)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure that needs no display; matplotlib is slow to import, so only where something is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG whole or not at all."""
    publish(path, lambda partial: figure.savefig(partial, format="png"))


def _curves(result: dict[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any] | None]:
    """Rows by model, and the many-step teacher apart when its steps are beyond the others'."""
    rows = result["rows"]
    teacher = [row for row in rows if row["model"] == "teacher"]
    student = [row for row in rows if row["model"] == "student"]
    limit = None
    if len(teacher) > 1 and (not student or teacher[-1]["steps"] > student[-1]["steps"]):
        limit = teacher.pop()
    return {name: part for name, part in (("teacher", teacher), ("student", student)) if part}, limit


def plain_log_ticks(axis: Any) -> None:
    """Label a log axis with plain numbers, densely enough for a range of less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 10 else (1, 2, 5) if high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=digits, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
