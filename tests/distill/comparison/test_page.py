"""A comparison's page, from published results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.comparison.kept import kept_runs, run_folder
from distill.comparison.reports.html.charts import ComparisonCharts
from distill.comparison.reports.html.page import comparison_page
from distill.comparison.results import Comparison
from distill.evaluation.answers import Answer, Answers, Written
from distill.evaluation.results import Frontier
from distill.runtime.result_files import json_text
from teachers.files import publish
from tests.distill.pages.html import check, read

DOCS = Path(__file__).parents[3] / "docs"
REACHED = Frontier(
    model="student", sampler="ancestral", steps=8, nfe=8.0, axis="unigram", entropy=2.887, reached=True,
    judge_perplexity=10.0,
)  # fmt: skip


@pytest.mark.parametrize("name", ["novels-seeds", "ablation", "oracle"])
def test_every_label_and_every_number_of_steps_is_there(name):
    comparison = Comparison.load(DOCS / f"{name}.json")
    root = read(comparison_page(comparison, name).html())
    check(root)
    steps = sorted({row.steps for run in comparison.runs for row in run.rows})
    plots = root.all("section", id="frontier")[0].all("svg", class_="plot")
    assert [plot.all("title")[0].text for plot in plots] == [f"{n} step{'s' * (n > 1)}" for n in steps]
    legend = root.all("section", id="cost")[0].all("ul", class_="legend")[0]
    assert [key.text.strip() for key in legend.all("li")][: len(comparison.settings) + 1] == [
        "teacher", *comparison.settings,
    ]  # fmt: skip
    assert len(root.all("table")[1].all("tbody")[0].all("tr")) == len(comparison.runs)


def test_seeds_are_a_range_around_their_mean():
    comparison = Comparison.load(DOCS / "novels-seeds.json")
    label = next(iter(comparison.settings))
    values = [
        row.judge_perplexity for run in comparison.runs if run.label == label for row in run.rows if row.steps == 8
    ]
    curve = next(curve for curve in ComparisonCharts(comparison).costs()[0].curves if curve.name == label)
    mark = next(mark for mark in curve.marks if f"{label}, 8 steps" in mark.note)
    assert mark.ends == (min(values), max(values))
    assert min(values) < mark.y < max(values)
    assert mark.note.endswith(f"{len(values)} seeds")


def test_what_failed_is_said_and_a_comparison_of_failures_is_a_page():
    comparison = Comparison.load(DOCS / "novels-seeds.json")
    runs = tuple(replace(run, rows=(), failed="<b>no memory</b>") for run in comparison.runs)
    root = read(comparison_page(replace(comparison, runs=runs), "all failed").html())
    check(root)
    assert "<b>no memory</b>" in root.all("section", id="claim")[0].text
    assert not root.all("section", id="frontier")


def at_temperatures(rows):
    return tuple(
        replace(row, temperature=t, judge_perplexity=row.judge_perplexity * t, bigram_entropy=row.bigram_entropy * t)
        for row in rows
        for t in (0.9, 1.0)
    )


def test_students_are_curves_over_temperatures_and_read_at_the_entropy_of_real_text():
    comparison = Comparison.load(DOCS / "novels-seeds.json")
    first, second = comparison.settings
    runs = tuple(
        replace(
            run, rows=at_temperatures(run.rows),
            frontier=(replace(REACHED, judge_perplexity=10.0 + run.seed) if run.label == first
                      else replace(REACHED, reached=False, judge_perplexity=None),),
        )
        for run in comparison.runs
    )  # fmt: skip
    comparison = replace(
        comparison,
        runs=runs,
        teacher=at_temperatures(comparison.teacher),
        frontier=(replace(REACHED, judge_perplexity=15.0),),
    )
    charts = ComparisonCharts(comparison)
    curve = next(curve for curve in charts.frontiers()[1].curves if curve.name == first)
    assert len(curve.marks) == 2
    assert [mark.label for mark in curve.marks] == ["", first]
    root = read(comparison_page(comparison, "seeds").html())
    check(root)
    claim = root.all("section", id="claim")[0].text
    mean = (10.0 * 11.0 * 12.0) ** (1 / 3)
    assert f"perplexities are: {first} {mean:.2f}; teacher 15.00." in claim
    assert f"Never as varied as real text in 8 steps: {second}." in claim
    rows = table_cells(root)
    assert [first, "8", "unigram", "2.887", f"{mean:.2f}", "10.00–12.00", "3 of 3"] in rows
    assert [second, "8", "unigram", "2.887", "not reached", "–", "0 of 3"] in rows
    some = replace(runs[0], frontier=(replace(REACHED, reached=False, judge_perplexity=None),))
    root = read(comparison_page(replace(comparison, runs=(some, *runs[1:])), "seeds").html())
    assert [first, "8", "unigram", "2.887", "not reached", "–", "2 of 3"] in table_cells(root), "no mean of the luckier"
    assert f"only with some seeds: {first} with 2 of 3 seeds." in root.all("section", id="claim")[0].text


def test_the_order_is_told_at_the_entropy_that_claims_less():
    comparison = Comparison.load(DOCS / "novels-seeds.json")
    bigram = replace(REACHED, axis="bigram", entropy=5.471, judge_perplexity=13.0)
    runs = tuple(replace(run, frontier=(REACHED, bigram)) for run in comparison.runs)
    teacher = (replace(REACHED, judge_perplexity=15.0), replace(bigram, judge_perplexity=14.0))
    assert "(bigram entropy), perplexities are" in claim_of(replace(comparison, runs=runs, frontier=teacher))
    other = (teacher[0], replace(bigram, judge_perplexity=40.0))
    assert "(unigram entropy), perplexities are" in claim_of(replace(comparison, runs=runs, frontier=other))
    alone = (teacher[0], replace(bigram, reached=False, judge_perplexity=None))
    assert "(unigram entropy), perplexities are" in claim_of(replace(comparison, runs=runs, frontier=alone))


def test_runs_show_their_training_and_texts_that_were_kept(tmp_path):
    comparison = Comparison.load(DOCS / "novels-seeds.json")
    first, second = list(comparison.settings)[:2]
    failed = [
        replace(run, failed="no memory") if (run.label, run.seed) == (first, 0) else run for run in comparison.runs
    ]
    comparison = replace(comparison, runs=tuple(failed))
    for label, seed in ((first, 0), (first, 1), (second, 0)):
        folder = run_folder(tmp_path, label, seed)
        folder.mkdir(parents=True)
        lines = [{"update": number, "student/loss": 1.0 / number, "student/reward": 0.5} for number in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    written = Answer("student", "dilated", 8, 8.0, 1.0, ("upon a time",), (Written("Once ", 0), Written("upon", 1)))
    publish(run_folder(tmp_path, second, 0) / "answers.json", json_text(Answers({}, (), ("Once",), None, (written,))))
    kept = kept_runs(comparison, tmp_path)
    assert list(kept) == [f"{first}, seed 1", f"{second}, seed 0"], "the first that came through"
    root = read(comparison_page(comparison, "seeds", kept).html())
    check(root)
    training = root.all("section", id="training")[0]
    titles = [plot.all("title")[0].text for plot in training.all("svg", class_="plot")]
    assert titles == [f"{name}: {what}" for what in ("Loss", "student: reward") for name in kept]
    assert all(name in training.text for name in kept)
    assert "upon a time" in root.all("section", id="texts")[0].text
    assert len(root.all("figure", class_="strip")) == 1
    assert not read(comparison_page(comparison, "seeds").html()).all("section", id="training")


def claim_of(comparison):
    return read(comparison_page(comparison, "seeds").html()).all("section", id="claim")[0].text


def table_cells(root):
    return [[cell.text for cell in row.all("td")] for row in root.all("table")[0].all("tr")[1:]]
