"""How near do few passes come to a source with dependence at a distance: teacher and students against the bound.

    python -m benchmarks.long_range COMPARISON … [--starts EVALUATION …] [--json FILE] [--plot FILE]

Each COMPARISON is a folder of `fewstep compare` whose judge is a source of `fewstep oracle`, as docs/results.md makes
them. For its source, sampler and steps the bound is computed (students/bound.py), for the dilated order and for the
best one as well, and written down beside what teacher and students measured. Each EVALUATION is a folder of
`fewstep evaluate --teacher` on the model that the comparison's students start from.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from distill.comparison.results import Comparison
from distill.config import EvaluateConfig
from distill.evaluation.reports.plots import GREY, lighten, new_figure, save_figure
from distill.evaluation.results import Evaluation, Row, at_own_temperature
from students.bound import least_divergence
from students.samplers.dilated import Dilated
from students.samplers.planned import PlannedSampler
from teachers.families import load_denoiser
from teachers.oracle.bounds import best_bounds
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.source import Source
from teachers.randomness import generator_of

SCHEDULES = {"copies": 4096, "templates": 256, "brackets": 8}
"""How many are drawn for the mean of a bound; one of brackets takes a second or more."""
COLOURS = {"integral_kl": "#d1495b", "dimo": "#0077bb", "redi": "#009988"}


def bounds_of(source: Source, sampler: PlannedSampler, steps: int) -> dict[str, Any]:
    """The bound of one order."""
    bound = least_divergence(source, sampler, steps, SCHEDULES[source.kind], generator_of(0))
    return {"order": sampler.name, "steps": steps, **asdict(bound)}


def best_of(source: Source, steps: int) -> dict[str, Any] | None:
    """That of the best order, where it is known."""
    best = best_bounds(source, steps)
    if best is None:
        return None
    assert source.row_length is not None, "it has bounds"
    lower, reached = (float(value) / source.row_length for value in best)
    return {"order": "best", "steps": steps, "lower": lower, "reached": reached}


def measured(row: Row) -> dict[str, Any]:
    """What is shown of a row."""
    figures = ("steps", "nfe", "divergence_nats", "divergence_nats_ci", "excess_nats", "excess_nats_ci")
    more = ("unigram_entropy", "bigram_entropy", "samples", "seconds")
    return {name: getattr(row, name) for name in (*figures, *more)}


def source_report(folder: Path, start: Path | None) -> dict[str, Any]:
    """All of one source, at the sampler's own temperature; ``start`` is an evaluation of the students' start."""
    comparison = Comparison.load(folder)
    denoiser = load_denoiser(comparison.judge.name)
    assert isinstance(denoiser, SourceDenoiser), "the judge is an exact source"
    source, length = denoiser.source, denoiser.spec.max_length
    sampling = comparison.sampling
    sampler = EvaluateConfig.model_validate({"sampler": sampling.sampler}).sampler
    assert isinstance(sampler, PlannedSampler), "an order that looks at no prediction"
    assert sampling.process == "log-linear", "as bounds are"
    steps = sorted({row.steps for run in comparison.runs for row in run.rows})
    bounds = [bounds_of(source, order, count) for order in (sampler, Dilated()) for count in steps]
    students = [
        {"label": run.label, "seed": run.seed, "updates": run.updates, "train_seconds": run.train_seconds}
        | measured(row)
        for run in comparison.runs
        for row in at_own_temperature(run.rows, sampling.temperature)
    ]
    begun = [] if start is None else at_own_temperature(Evaluation.load(start).rows, sampling.temperature)
    return {
        "kind": source.kind,
        "arguments": {k: v for k, v in source.arguments().items() if isinstance(v, int | float)},
        "length": length,
        "entropy": denoiser.entropy() / length,
        "sampler": sampling.sampler,
        "device": sampling.device,
        "bounds": bounds + [best for count in steps if (best := best_of(source, count)) is not None],
        "teacher": [measured(row) for row in comparison.own_teacher],
        "start": [measured(row) for row in begun if row.steps in steps],
        "students": students,
    }


def draw(axes: Axes, report: dict[str, Any]) -> None:
    """Divergence against passes: the bound as a grey region, the teacher, and every student."""
    own = [bound for bound in report["bounds"] if bound["order"] == report["sampler"]]
    steps = [bound["steps"] for bound in own]
    axes.fill_between(steps, 0, [bound["lower"] for bound in own], color=GREY, alpha=0.3, label="no student")
    axes.plot(steps, [bound["reached"] for bound in own], color=GREY, linestyle=":", label="reached")
    few = [row for row in report["teacher"] if row["steps"] in steps]
    axes.plot([row["steps"] for row in few], [row["divergence_nats"] for row in few], "k-o", label="the source")
    axes.plot([row["steps"] for row in report["start"]], [row["divergence_nats"] for row in report["start"]], "x--",
              color="#777777", label="students' start")  # fmt: skip
    for number, (label, colour) in enumerate(COLOURS.items()):
        rows = [row for row in report["students"] if row["label"] == label]
        x = [row["steps"] * 1.06 ** (number - 1) for row in rows]
        axes.plot(x, [row["divergence_nats"] for row in rows], "D", color=colour, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("passes")
    axes.set_title(report["kind"])
    lighten(axes)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path)
    parser.add_argument("--starts", nargs="*", type=Path, default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    reports = [source_report(*pair) for pair in zip_longest(asked.comparisons, asked.starts)]
    text = json.dumps({"sources": reports}, indent=1) + "\n"
    print(text, end="")
    if asked.json:
        asked.json.write_text(text, encoding="utf-8")
    if asked.plot:
        figure = new_figure(4 * len(reports), 3.6)
        panels = figure.subplots(1, len(reports), squeeze=False)[0]
        for axes, report in zip(panels, reports, strict=True):
            draw(axes, report)
        panels[0].set_ylabel("divergence, nats a token")
        panels[0].legend(fontsize=7)
        save_figure(figure, asked.plot)


if __name__ == "__main__":
    main()
