"""A comparison as people read it: a table on the terminal and in Markdown, and two pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distill.comparison.compare import measure, summarise
from distill.evaluation.report import (
    AXES,
    COLOURS,
    DIVERGENCE,
    new_figure,
    perplexity_text,
    plain_log_ticks,
    save_figure,
)

NAMES = {"judge_perplexity": "judge PPL", "excess_nats": "excess nats", "divergence_nats": "divergence nats"}
PALETTE = (
    "#d1495b", "#0077bb", "#ee7733", "#009988", "#aa3377", "#b8860b", "#33bbee", "#66aa33", "#7a5195", "#8c564b",
    "#555555", "#cc6699",
)  # fmt: skip
MARKERS = "osD^vPX<>ph*"


def columns(comparison: dict[str, Any]) -> list[str]:
    """Headings of the table; beside a divergence stands the excess, whose sign tells sharp from blurred."""
    key = _key(comparison)
    excess = [NAMES["excess_nats"]] if key == "divergence_nats" else []
    return [
        "steps", "model", "seeds", NAMES[key], "95% interval", *excess, "unigram H", "bigram H", "distinct-2",
        "NFE", "critic NFE", "seconds", "updates", "train s", "rows s", "dominated by",
    ]  # fmt: skip


def table_sections(comparison: dict[str, Any]) -> list[list[list[str]]]:
    """Cells under `columns`: what students are held against, then a section per number of steps, the best first."""
    key, limit = _key(comparison), comparison["teacher_steps"]
    summary = summarise(comparison["rows"], key)
    steps = sorted({row["steps"] for row in [*summary, *comparison["teacher"]]} - {limit})
    if any(one["steps"] == limit for one in summary):
        steps.append(limit)
    head = [_reference_cells("real text", "–", comparison["reference"], key)] if comparison["reference"] else []
    if limit not in steps:
        head += [
            _reference_cells("teacher", f"{limit:,}", r, key) for r in comparison["teacher"] if r["steps"] == limit
        ]
    sections = [head]
    for count in steps:
        cells = [_reference_cells("teacher", str(count), r, key) for r in comparison["teacher"] if r["steps"] == count]
        here = sorted((one for one in summary if one["steps"] == count), key=lambda one: one["quality"])
        sections.append(cells + [_student_cells(one, key) for one in here])
    return [section for section in sections if section]


def _key(comparison: dict[str, Any]) -> str:
    return measure([*comparison["teacher"], *comparison["rows"]])


def _text(value: float, key: str) -> str:
    return perplexity_text(value) if key == "judge_perplexity" else f"{value:.4f}"


def _reference_cells(name: str, steps: str, row: dict[str, Any], key: str) -> list[str]:
    ends = row.get(f"{key}_ci")
    bounds = "–" if ends is None else f"{_text(ends[0], key)}–{_text(ends[1], key)}"
    cost = ["–"] * 3
    if "nfe" in row:
        cost = [f"{row['nfe']:.1f}", f"{row['critic_nfe']:.1f}", f"{row['seconds']:.1f}"]
    quality = _text(row[key], key) if key in row else "–"
    return [steps, name, "–", quality, bounds, *_beside(row, key), *cost, "–", "–", "–", ""]


def _beside(row: dict[str, Any], key: str) -> list[str]:
    """Cells of what quality must be read with: the excess, where ``key`` is a divergence, and diversity."""
    excess = [f"{row['excess_nats']:.4f}"] if key == "divergence_nats" else []
    return [*excess, *(f"{row[name]:.3f}" for name in ("unigram_entropy", "bigram_entropy", "distinct_2"))]


def _student_cells(one: dict[str, Any], key: str) -> list[str]:
    ends = one["interval"]
    bounds = "–" if ends is None else f"{_text(ends[0], key)}–{_text(ends[1], key)}"
    cost = [f"{one['nfe']:.1f}", f"{one['critic_nfe']:.1f}", f"{one['seconds']:.1f}", f"{one['updates']:,}"]
    cells = [str(one["steps"]), one["label"], str(one["seeds"]), _text(one["quality"], key), bounds]
    cells += [*_beside(one, key), *cost]
    best, *more = one["dominated_by"] or [""]
    return [
        *cells,
        f"{one['train_seconds']:,.0f}",
        f"{one['rows_seconds']:,.0f}",
        best + (f" and {len(more)} more" if more else ""),
    ]


def caption(comparison: dict[str, Any]) -> str:
    """What was sampled, how, who judged, and what the columns mean."""
    sampling, judge, command = comparison["sampling"], comparison["judge"], comparison["command"]
    read = ", retokenized" if judge["retokenized"] else ""
    bound = f"; {DIVERGENCE}" if _key(comparison) == "divergence_nats" else ""
    spent = "minutes of training" if command["budget"].endswith("m") else "updates"
    return (
        f"budget {command['budget'][:-1]} {spent}; the average after the last update; means over seeds, of "
        "perplexity that of all their samples; interval: students t over seeds, in nats, teacher and real text "
        "bootstrap over samples; "
        f"{sampling['samples']} samples of {sampling['length']} tokens a run, {sampling['sampler']} sampler, "
        f"{sampling['draw']} draws, {sampling['precision']}, {sampling['device']}; judge {judge['name']} "
        f"({judge['parameters'] / 1e6:,.1f} M parameters{read}){bound}; entropies in nats; "
        "NFE: mean passes a sequence; seconds of sampling all samples; "
        "train s: from the start of the first update to the end of the last; "
        "rows s: before it, for what the teacher wrote to be learned from, outside the budget; "
        "dominated by: who is better at equal or higher bigram entropy"
    )


def failures(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of runs that failed."""
    return [row for row in comparison["rows"] if row["failed"] is not None]


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Print the table on standard output, or on ``console``."""
    table = Table(title="Students by steps", caption=caption(comparison), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns(comparison):
        left = column in ("model", "dominated by")
        table.add_column(column.replace(" ", "\n"), justify="left" if left else "right", no_wrap=True)
    for section in table_sections(comparison):
        table.add_section()
        for cells in section:
            table.add_row(*cells, style="bold" if cells[2] != "–" and not cells[-1] else None)
    console = console or Console()
    # a narrow terminal wraps the lines; cutting figures off would be worse
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def markdown(comparison: dict[str, Any]) -> str:
    """The table in Markdown, its caption, the runs, where their settings differ, and those that failed."""
    headings = columns(comparison)
    lines = [f"| {' | '.join(headings)} |", f"| ---: | --- |{' ---: |' * (len(headings) - 3)} --- |"]
    lines += [f"| {' | '.join(cells)} |" for section in table_sections(comparison) for cells in section]
    lines += ["", caption(comparison), ""]
    lines += ["| run | objective | seed | weights trained | updates | planned s | train s | rows s |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    seen = set()
    for row in comparison["rows"]:
        if (row["label"], row["seed"]) not in seen:
            seen.add((row["label"], row["seed"]))
            trained = "–" if row["parameters_trained"] is None else f"{row['parameters_trained']:,}"
            planned, written = (
                "–" if row[name] is None else f"{row[name]:,.0f}" for name in ("planned_seconds", "rows_seconds")
            )
            lines.append(
                f"| {row['label']} | {row['objective']} | {row['seed']} | {trained} | {row['updates']:,} | {planned} | "
                f"{row['train_seconds']:,.0f} | {written} |"
            )
    lines += [""] + [
        f"- **{label}**: " + ", ".join(f"`{key}={value}`" for key, value in settings.items())
        for label, settings in comparison["settings"].items()
        if settings
    ]
    lines += [f"- {row['label']}, seed {row['seed']}, **failed**: {row['failed']}" for row in failures(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def styles(comparison: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """A colour and a marker a label, whether or not its runs came through, so that two pictures agree."""
    labels = list(comparison["settings"])
    return {label: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}


def plot_frontier(comparison: dict[str, Any], path: Path) -> None:
    """Draw quality against bigram entropy, a panel per number of steps; the PNG is written whole or not at all.

    A marker is a mean over seeds with 95% t-intervals, the small ones are the seeds; below and right is better. The
    limits are those of three students or more; what lies far off is drawn at the edge, with its values.
    """
    key, look = _key(comparison), styles(comparison)
    summary = summarise(comparison["rows"], key)
    steps = sorted({one["steps"] for one in summary}) or sorted({row["steps"] for row in comparison["teacher"]})
    across = min(3, len(steps))
    down = math.ceil(len(steps) / across)
    figure = new_figure(4.9 * across + 1.2, 4.1 * down + 0.6)
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(steps) :]:
        axes.set_visible(False)
    labels, handles = [], {}
    for axes, count in zip(panels, steps, strict=False):
        texts = []
        for one in (one for one in summary if one["steps"] == count):
            colour, marker = look[one["label"]]
            axes.scatter(one["entropies"], one["values"], s=9, color=colour, alpha=0.4, linewidth=0, zorder=2)
            bars = axes.errorbar(
                one["bigram_entropy"], one["quality"], _bar(one["quality"], one["interval"]),
                _bar(one["bigram_entropy"], one["entropy_interval"]), color=colour, marker=marker, markersize=7,
                markeredgecolor="white", markeredgewidth=0.6, elinewidth=0.7, capsize=0, linestyle="", zorder=3,
            )  # fmt: skip
            handles.setdefault(one["label"], bars)
            texts.append((one["bigram_entropy"], one["quality"], one["label"], colour))
        landmarks = _landmarks(comparison, count, key)
        few = len(texts) < 3  # too few to make a frame of their own
        spread = [(x, y) for x, y, *_ in texts] + [(row["bigram_entropy"], row[key]) for *_, row in landmarks if few]
        _fit(axes, [x for x, _ in spread], [y for _, y in spread], room=0.14 if few else 0.5)
        for name, colour, marker, row in landmarks:
            x, y = (
                min(max(value, low), high)
                for value, (low, high) in ((row["bigram_entropy"], axes.get_xlim()), (row[key], axes.get_ylim()))
            )
            far = (x, y) != (row["bigram_entropy"], row[key])
            handle = axes.scatter(
                x, y, s=70, marker=marker, color=colour, zorder=2.5, linewidth=1.4, clip_on=False,
                facecolors="none" if "many" in name else colour,
            )  # fmt: skip
            handles.setdefault(name, handle)
            short = f"teacher, {comparison['teacher_steps']:,}" if "many" in name else name.split(",")[0]
            values = f" ({row['bigram_entropy']:.2f}, {_text(row[key], key)})" if far else ""
            texts.append((x, y, short + values, colour))
        axes.set_title(f"{count} step{'s' if count > 1 else ''}", loc="left", fontweight="bold")
        axes.set_xlabel("bigram entropy (nats; higher is more diverse)")
        axes.set_ylabel(f"{AXES[key]} (lower is better)")
        labels.append((axes, texts))
    names = {
        f"teacher, many steps ({comparison['teacher_steps']:,})" if "many" in n else n: h for n, h in handles.items()
    }
    figure.legend(names.values(), names.keys(), loc="outside right upper", frameon=False, fontsize=9)
    note = "large: mean over seeds, 95% t-interval; small: seeds" if comparison["command"]["seeds"] > 1 else "one seed"
    figure.supxlabel(f"budget {comparison['command']['budget']} a run; {note}", fontsize=8.5, color="#555555")
    _label(figure, labels)
    save_figure(figure, path)


def plot_speed(comparison: dict[str, Any], path: Path) -> None:
    """Draw quality against seconds of sampling a sequence, a line per label over the numbers of steps."""
    key, look = _key(comparison), styles(comparison)
    summary = summarise(comparison["rows"], key)
    figure = new_figure(8.6, 5.4)
    axes = figure.subplots()
    lines = {"teacher": [(r["seconds"] / r["samples"], r[key], r["steps"]) for r in comparison["teacher"]]}
    for one in summary:
        lines.setdefault(one["label"], []).append((one["seconds"] / one["samples"], one["quality"], one["steps"]))
    points = []
    for name, line in lines.items():
        colour, marker = ("black", "s") if name == "teacher" else look[name]
        x, y, _ = zip(*line, strict=True)
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.7, label=name, zorder=3)
        points += line
    if comparison["reference"] is not None and key in comparison["reference"]:
        real = comparison["reference"][key]
        axes.axhline(real, color=COLOURS["real text"], linestyle=":", linewidth=1.8, label="real text")
        points.append((points[0][0], real, 0))
    axes.set_xscale("log")
    _fit(axes, [x for x, *_ in points], [y for _, y, *_ in points])
    plain_log_ticks(axes.xaxis)
    axes.set_xlabel(f"seconds of sampling a sequence, in batches of {comparison['sampling']['batch']}")
    axes.set_ylabel(f"{AXES[key]} (lower is better)")
    axes.set_title("Quality against time; beside the teacher, its steps", loc="left", fontweight="bold")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    steps = [(x, y, f"{count:,}", "black") for x, y, count in lines["teacher"]]
    _label(figure, [(axes, steps)])
    save_figure(figure, path)


def _landmarks(comparison: dict[str, Any], steps: int, key: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Name, colour, marker and row of what students at so many steps are held against."""
    found = []
    for row in comparison["teacher"]:
        if row["steps"] == steps:
            found.append(("teacher, same steps", "black", "s", row))
        elif row["steps"] == comparison["teacher_steps"]:
            found.append(("teacher, many steps", "black", "s", row))
    if comparison["reference"] is not None and key in comparison["reference"]:
        found.append(("real text", COLOURS["real text"], "*", comparison["reference"]))
    return found


def _bar(mean: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    return None if ends is None else [[mean - ends[0]], [ends[1] - mean]]


def _fit(axes: Any, x: list[float], y: list[float], room: float = 0.14) -> None:
    """Limits around the points, not around their bars, ``room`` × their range on each side; y is log if positive."""
    y = [value for value in y if math.isfinite(value)]
    if min(y) > 0:
        axes.set_yscale("log")
        factor = max(1.12, (max(y) / min(y)) ** room)
        axes.set_ylim(min(y) / factor, max(y) * factor)
        plain_log_ticks(axes.yaxis)
    else:
        margin = room * (max(y) - min(y)) or 1.0
        axes.set_ylim(min(y) - margin, max(y) + margin)
    if axes.get_xscale() == "log":
        axes.set_xlim(min(x) / 1.3, max(x) * 1.3)
    else:
        margin = max(room * (max(x) - min(x)), 0.02)
        axes.set_xlim(min(x) - margin, max(x) + margin)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(figure: Any, panels: list[tuple[Any, list[tuple[float, float, str, str]]]]) -> None:
    """Write each text beside its point where it covers no other text and no point; leave it to the legend if nowhere.

    Args:
        panels: axes with (x, y, text, colour), data coordinates.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # the layout is settled now; texts stay out of it
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    directions = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
    for axes, points in panels:
        frame, unit = axes.get_window_extent(renderer), figure.dpi / 72
        at = [axes.transData.transform((x, y)) for x, y, *_ in points]
        taken = [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in at]
        for (x, y, text, colour), (px, py) in zip(points, at, strict=True):
            artist = axes.annotate(
                text, (x, y), (0, 0), textcoords="offset points", color=colour, fontsize=8, ha="center", va="center",
                zorder=4, path_effects=[withStroke(linewidth=2.2, foreground="white")],
            )  # fmt: skip
            size = artist.get_window_extent(renderer)
            for reach in (1, 2, 3.2):
                places = [
                    (dx * (size.width / 2 + 7 * unit * reach), dy * (size.height / 2 + 4 * unit * reach))
                    for dx, dy in directions
                ]
                free = [p for p in places if _is_free(px + p[0], py + p[1], size, taken, frame)]
                if free:
                    break
            if not free:
                artist.remove()
                continue
            dx, dy = free[0]
            artist.set_position((dx / unit, dy / unit))
            half = size.width / 2, size.height / 2
            taken.append((px + dx - half[0], py + dy - half[1], px + dx + half[0], py + dy + half[1]))


def _is_free(x: float, y: float, size: Any, taken: list[tuple[float, float, float, float]], frame: Any) -> bool:
    left, right, low, high = x - size.width / 2, x + size.width / 2, y - size.height / 2, y + size.height / 2
    if left < frame.x0 or right > frame.x1 or low < frame.y0 or high > frame.y1:
        return False
    return all(right <= a or left >= c or high <= b or low >= d for a, b, c, d in taken)
