"""The page of evaluations and runs: what it claims, and that what is there is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.evaluation.answers import Answer, Answers, Written
from distill.evaluation.reports.html.page import Report, report_page
from distill.evaluation.results import Evaluation, Frontier, Protocol
from distill.evaluation.tasks.results import Asking, Curve, TaskDescription, TaskEvaluation, TaskRow
from distill.runtime.cost import Cost
from tests.distill.pages.html import check, read

DOCS = Path(__file__).parents[3] / "docs"
EVIL = "<script>alert(1)</script>"
LINES = [
    {"update": 10, "student/loss": 0.5, "student/grad_norm": 1.0, "critic/loss": 2.0, "student/reward": 0.1},
    {"update": 20, "student/loss": 0.4, "student/grad_norm": 0.9, "critic/loss": 1.9, "student/reward": 0.2},
    {
        "update": 20, "watch/judge_perplexity": 12.0, "watch/teacher_judge_perplexity": 15.0,
        "watch/bigram_entropy": 5.4, "watch/teacher_bigram_entropy": 5.5, "watch/teacher_at_bigram_entropy": 14.0,
        "watch/relative_perplexity": 0.86,
    },
]  # fmt: skip
COST = Cost(
    seconds=121, core_hours=0.067, gpu_hours=0, devices=("cpu",), teacher_passes=12_345, student_passes=9_800,
    critic_passes=0, tokens=163_840, peak_host_bytes=1_200_000_000, peak_device_bytes=None, seeds=(0,), updates=40,
    versions={"torch": "2.13.0"},
)  # fmt: skip


@pytest.fixture(scope="module")
def quickstart():
    return Evaluation.load(DOCS / "quickstart-steps.json")


def frontier(**changes):
    values = {
        "model": "student", "sampler": "dilated", "steps": 8, "nfe": 8.0, "axis": "unigram", "entropy": 2.887,
        "reached": True, "judge_perplexity": 12.6, "judge_perplexity_ci": (12.1, 13.1), "to_teacher": 0.82,
        "to_teacher_ci": (0.79, 0.85), "to_many": 0.98, "to_many_ci": (0.93, 1.03),
    }  # fmt: skip
    return Frontier(**(values | changes))


def varied(evaluation, **changes):
    """The same at a second temperature as well."""
    rows = tuple(replace(row, temperature=t) for row in evaluation.rows for t in (0.9, 1.0))
    return replace(evaluation, rows=rows, **changes)


def claims(evaluation):
    root = read(report_page([Report("run", evaluation)]).html())
    check(root)
    [section] = root.all("section", id="claim")
    return [part.text for part in section.all("p", class_="claim") + section.all("p", class_="prose")]


def test_the_claim_is_the_student_against_its_teacher_at_the_entropy_of_real_text(quickstart):
    bigram = frontier(axis="bigram", entropy=5.471, to_teacher=1.04, to_teacher_ci=(1.01, 1.07))
    first, unigram, second, _ = claims(varied(quickstart, frontier=(frontier(), bigram)))
    assert first == (
        "In 8 passes and at the bigram entropy of real text, the student's perplexity is 4% higher (+1% to +7%) than "
        "its teacher's."
    ), "of two axes the one that claims less"
    assert "2.887 nats: the student has a perplexity of 12.60 (95% interval 12.10–13.10)" in unigram
    assert "not clearly different (−7% to +3%) from the teacher's with its many steps" in unigram
    assert "5.471 nats" in second
    assert "4% higher (+1% to +7%) than" in second


def test_cards_show_the_curves_at_the_entropy_of_real_text_on_the_axis_of_the_claim(quickstart):
    bigram = frontier(axis="bigram", entropy=5.471, judge_perplexity=13.1, to_teacher=0.9)
    page = report_page([Report("run", varied(quickstart, frontier=(frontier(), bigram)))]).html()
    texts = {card.all("h3")[0].text: card.text for card in read(page).all("li", class_="card")}
    assert "13.10" in texts["Student, 8 steps"]
    assert "5.471 nats" in texts["Student, 8 steps"]
    assert f"{quickstart.reference.judge_perplexity:.2f}" in texts["Real text"]


def test_where_a_curve_does_not_reach_that_entropy_nothing_is_claimed(quickstart):
    nothing = dict.fromkeys(
        ("judge_perplexity", "judge_perplexity_ci", "to_teacher", "to_teacher_ci", "to_many", "to_many_ci")
    )
    first, unigram, _ = claims(varied(quickstart, frontier=(frontier(reached=False, **nothing),)))
    assert "nothing is claimed" in first
    assert "does not reach it" in unigram
    assert "lower" not in first + unigram


def test_a_teacher_that_does_not_reach_it_is_no_comparison(quickstart):
    first, unigram, _ = claims(varied(quickstart, frontier=(frontier(to_teacher=None, to_teacher_ci=None),)))
    assert first.endswith("has a perplexity of 12.60; its teacher's text is not as varied in as many steps.")
    assert "does not reach it" in unigram


def test_without_a_frontier_both_are_named_with_their_entropies(quickstart):
    first, second = claims(replace(quickstart, frontier=(frontier(reached=False, judge_perplexity=None),)))
    assert (first, second) == tuple(claims(quickstart)), "one temperature is no curve"
    rows = {row.model: row for row in quickstart.rows if row.steps == 8}
    for row in rows.values():
        assert f"a perplexity of {row.judge_perplexity:.2f} at {row.bigram_entropy:.3f} nats" in first
    assert "decide nothing" in second


def test_an_evaluation_is_a_page(quickstart):
    root = read(quickstart.to_html())
    check(root)
    names = [plot.all("title")[0].text for plot in root.all("svg", class_="plot")]
    assert names == [
        "Quality against unigram entropy", "Quality against bigram entropy", "Quality against passes",
        "Diversity against passes", "Quality against time", "Diversity against time", "Distinct 2",
    ]  # fmt: skip
    rows = root.all("table")[0].all("tbody")[0].all("tr")
    assert len(rows) == len(quickstart.rows) + 1
    marks = root.all("svg", class_="plot")[2].all("path", class_="dot")
    assert len(marks) == len(quickstart.rows)
    assert "20 updates" not in root.text


def test_figures_that_show_what_a_perplexity_hides_are_seen_at_once(quickstart):
    rows = tuple(
        replace(row, mauve=0.9, energy_distance=0.1, self_bleu=0.2, longest_run=2.0) for row in quickstart.rows
    )
    root = read(replace(quickstart, rows=rows).to_html())
    [section] = root.all("section", id="figures")
    names = [plot.all("title")[0].text for plot in section.all("svg", class_="plot")]
    assert names == ["Mauve", "Energy distance", "Distinct 2", "Longest run", "Self bleu"]
    folded = section.all("details")[0].all("svg", class_="plot")
    assert [plot.all("title")[0].text for plot in folded] == names[2:]


def test_rows_as_a_paper_measures_have_a_table_of_their_own(quickstart):
    protocol = Protocol(name="mdlm", judge="gpt2-large", end_of_text="first", source="<2406.07524>")
    root = read(replace(quickstart, protocol=protocol, published=quickstart.rows[:2]).to_html())
    table = root.all("section", id="tables")[0].all("figure", class_="table")[1]
    assert table.all("strong")[0].text == "As published, and exactly"
    assert "<2406.07524>" in table.all("figcaption")[0].text
    assert len(table.all("tbody")[0].all("tr")) == 4


def test_curves_over_temperatures_are_joined_and_reach_the_plot_of_their_own(quickstart):
    rows = [
        replace(row, temperature=t, judge_perplexity=row.judge_perplexity * t, unigram_entropy=row.unigram_entropy * t)
        for row in quickstart.rows
        for t in (0.9, 1.0)
    ]
    root = read(replace(quickstart, rows=tuple(rows)).to_html())
    frontier_plot, passes = root.all("svg", class_="plot")[0], root.all("svg", class_="plot")[2]
    assert any("L" in line.attributes["d"] for line in frontier_plot.all("path", class_="line"))
    # at the sampler's own temperature alone
    assert len(passes.all("path", class_="dot")) == len(quickstart.rows)
    assert "temperature 0.9" not in passes.text


def written(model, steps, nfe=8.0):
    canvas = (Written("Once ", 0), Written(EVIL, 2), Written("\n", 1))
    return Answer(model, "dilated", steps, nfe, 1.5, (f"{model} in {steps}", EVIL), canvas)


def answers():
    plan = (("teacher", 1024), ("teacher", 16), ("teacher", 8), ("student", 16), ("student", 8), ("student", 4))
    made = tuple(written(model, steps) for model, steps in plan)
    return Answers({}, plan, ("Once upon", "<b>She</b>"), ("a time", "said"), made)


def test_a_whole_run(quickstart):
    evaluation = replace(quickstart, training=COST, frontier=(frontier(),))
    report = Report("run", evaluation, config="teacher: <x>", lines=LINES, best=20, answers=answers())
    root = read(report_page([report]).html())
    check(root)
    plots = {plot.all("title")[0].text: plot for plot in root.all("svg", class_="plot")}
    assert {"Loss", "Norm of the gradient", "Watch: judge perplexity", "Watch: relative perplexity"} <= plots.keys()
    assert "student: reward" in plots
    relative = plots["Watch: relative perplexity"]
    assert len(relative.all("path", class_="level")) == 2, "the teacher as varied, and the best checkpoint"
    quality = next(f for f in root.all("figure", class_="chart") if plots["Watch: judge perplexity"] in f.all("svg"))
    assert "teacher at the student's bigram entropy" in quality.text
    assert "unigram entropy" not in quality.text, "it was never as varied"
    entropy = plots["Watch: bigram entropy"]
    assert len(entropy.all("path", class_="level")) == 3  # teacher, floor, best checkpoint
    figure = next(figure for figure in root.all("figure", class_="chart") if entropy in figure.all("svg"))
    assert "floor, 97% of the teacher's" in figure.text
    assert "best checkpoint, update 20" in figure.text
    assert "12,345" in root.all("section", id="settings")[0].text
    assert root.all("pre")[0].text == "teacher: <x>"


def test_equal_numbers_of_steps_face_each_other_and_real_text_the_many(quickstart):
    root = read(report_page([Report("run", quickstart, answers=answers())]).html())
    first, second = root.all("article")
    assert first.all("h3")[0].text.endswith("Once upon")
    names = [" ".join(text.all("h4")[0].text.split()) for text in first.all("section", class_="answer")]
    assert [name.partition(" 8 passes")[0] for name in names] == [
        "Teacher, 1,024 steps", "Real text as it goes on", "Teacher, 16 steps", "Student, 16 steps",
        "Teacher, 8 steps", "Student, 8 steps", "Student, 4 steps",
    ]  # fmt: skip
    assert first.all("section", class_="answer")[-1].attributes["class"].split()[1] == "right"
    assert EVIL in second.text
    assert len(root.all("script")) == 1


def test_strips_are_of_the_student_and_of_the_teacher_in_as_many_and_many_steps(quickstart):
    root = read(report_page([Report("run", quickstart, answers=answers())]).html())
    strips = root.all("figure", class_="strip")
    assert [strip.all("strong")[0].text for strip in strips] == [
        "Student, 8 steps", "Teacher, 8 steps", "Teacher, 1,024 steps",
    ]  # fmt: skip
    assert strips[0].all("p", class_="canvas")[0].text.strip() == f"Once {EVIL}↵"


def test_runs_stand_side_by_side_with_the_same_limits(quickstart):
    sharper = replace(
        quickstart, rows=tuple(replace(row, judge_perplexity=row.judge_perplexity / 2) for row in quickstart.rows)
    )
    page = report_page([Report("one", quickstart), Report("other", sharper)])
    root = read(page.html())
    check(root)
    [section] = root.all("section", id="cost")
    charts = section.all("figure", class_="chart")
    assert [chart.all("span", class_="owner")[0].text for chart in charts[:4]] == ["one", "other"] * 2
    ticks = [[text.text for text in chart.all("g", class_="ticks")[0].all("text")] for chart in charts[:2]]
    assert ticks[0] == ticks[1]


def test_a_task_is_a_page_as_well():
    rows = tuple(
        TaskRow(
            model=model, sampler="dilated", steps=steps, nfe=float(steps), nfe_median=steps, nfe_p95=steps,
            critic_nfe=0.0, accuracy=accuracy, accuracy_ci=(accuracy - 0.1, accuracy + 0.1), tokens=9.0, tpf=9 / steps,
            ended=1.0, seconds=0.1,
        )
        for model, steps, accuracy in (("teacher", 4, 0.4), ("teacher", 8, 0.6), ("student", 4, 0.55))
    )  # fmt: skip
    evaluation = TaskEvaluation(
        models={}, task=TaskDescription("sums", "sums.jsonl", "0" * 64, 100, "numeric", {}),
        asking=Asking("float32", "log-linear", 32, 16, 0, "cpu", "2.13"), rows=rows,
        curves=(Curve("teacher", "dilated", 1.0), Curve("student", "dilated", 2.0)),
    )  # fmt: skip
    root = read(evaluation.to_html())
    check(root)
    plots = root.all("svg", class_="plot")
    assert [plot.all("title")[0].text for plot in plots] == [
        "sums: accuracy against passes", "sums: accuracy against parallelism",
    ]  # fmt: skip
    assert len(plots[0].all("path", class_="dot")) == 3
    assert "40.0" in root.all("table")[0].text
    assert not root.all("section", id="frontier")


def test_a_caption_is_no_wider_than_its_figure():
    from distill.evaluation.reports.plots import evaluation_figure  # matplotlib is loaded by what draws

    figure = evaluation_figure(Evaluation.load(DOCS / "quickstart.json"))
    figure.canvas.draw()
    [caption] = [text for text in figure.texts if "bootstrap" in text.get_text()]
    assert 0 < caption.get_window_extent().x0 < caption.get_window_extent().x1 < figure.bbox.width
