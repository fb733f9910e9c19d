"""`fewstep compare`: what is computed, and real comparisons of networks of a few thousand weights."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from distill import cli
from distill.commands.compare import compare_command
from distill.comparison import schedule
from distill.comparison.budget import Budget, parse_budget, seconds_per_update
from distill.comparison.fairness import check_fair, differences, load_contenders, split_words
from distill.comparison.reports.cells import table_sections
from distill.comparison.reports.markdown import comparison_markdown
from distill.comparison.reports.plots import frontier_figure, speed_figure
from distill.comparison.reports.terminal import comparison_table
from distill.comparison.results import Command as Asked
from distill.comparison.results import Comparison, Machine, RunResult
from distill.comparison.run import why_failed
from distill.comparison.summary import spread, summarise
from distill.config import DataConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.evaluation.reports.plots import save_figure
from distill.evaluation.results import Figures, JudgeDescription, Row, Sampling
from distill.runtime.result_files import as_json
from distill.runtime.run_folder import RunFolder
from distill.runtime.tables import text
from teachers.errors import UserError
from tests.distill.evaluation.test_evaluate import DISTANCES, LENGTH, OVERLAPS, ROW, tiny
from tests.distill.runs import final_weights, wait_for_updates
from tests.forks import Command

EVALUATE = {
    "temperatures": None,
    "steps": [1, 4],
    "teacher_steps": 16,
    "samples": 8,
    "batch": 8,
    "bootstrap": 20,
    "every": 3,
}
RESULT = {
    "label",
    "objective",
    "seed",
    "updates",
    "planned_seconds",
    "train_seconds",
    "rows_seconds",
    "parameters_trained",
    "failed",
    "cost",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Configs with a tiny teacher and judge: two that work, and one whose learning rate breaks it."""
    root: Path = tmp_path_factory.mktemp("compare")
    text = root / "text.txt"
    text.write_text("".join(f"Line {i} says that {i * i} is a square. " for i in range(300)), "utf-8")
    data = DataConfig(path=str(text), length=LENGTH)
    tokenizer = train_tokenizer(TokenizerConfig(vocabulary=259), data)
    for name, seed, attention in (("teacher", 1, "full"), ("judge", 3, "causal")):
        tiny(tokenizer, seed, attention).save(root / name)
        tokenizer.save_pretrained(root / name)
    configs = {}
    for label, rate in (("slow", 1e-4), ("fast", 1e-3), ("broken", 1e30)):
        configs[label] = root / f"{label}.yaml"
        config = {
            "teacher": {"path": str(root / "teacher")},
            "objective": {"name": "integral_kl", "rollout": {"steps": [4]}},
            "data": {"path": str(text), "length": LENGTH, "heldout_fraction": 0.5},
            "train": {"updates": 7, "batch": 4, "max_skipped": 1, "student": {"lr": rate}, "critic": {"lr": 1e-3}},
            "evaluate": {"judge": str(root / "judge"), **EVALUATE},
        }
        configs[label].write_text(yaml.safe_dump(config))
    return SimpleNamespace(root=root, configs=configs)


@pytest.fixture
def here(monkeypatch):
    """Runs in this very process instead of one each: start-up takes longer than they do. Lists what was started."""
    started = []

    def start(words, log, threads):
        run = Path(words[words.index("--run-dir") + 1])
        started.append(f"{run.parent.name}/{run.name}" + (" resumed" if "--resume" in words else ""))
        if run.parent.name in stop_at:
            raise KeyboardInterrupt
        monkeypatch.setattr(sys, "argv", ["fewstep", *words[3:]])
        code = 0
        with log.open("a") as said, contextlib.redirect_stderr(said):
            try:
                cli.main()
            except SystemExit as leave:
                code = leave.code or 0
        gc.collect()  # the run's lock goes with its folder
        return SimpleNamespace(poll=lambda: code, wait=lambda: code)

    stop_at = set()
    monkeypatch.setattr(schedule, "start", start)
    return SimpleNamespace(started=started, stop_at=stop_at)


def compare(out, *words, **options):
    path = compare_command([str(w) for w in words], out, **{"seeds": 1, **options})
    gc.collect()
    return json.loads(path.read_text("utf-8"))


def test_killed_and_restarted_it_goes_on_and_a_run_that_fails_is_a_row(made, tmp_path, here, capfd):
    out, budget = tmp_path / "out", "30u"
    words = [made.configs[label] for label in ("slow", "broken", "fast")]
    here.stop_at.add("fast")
    try:
        compare(out, *words, budget=budget)
    except KeyboardInterrupt:
        gc.collect()  # the comparison's lock
    assert here.started == ["slow/seed-0", "broken/seed-0", "fast/seed-0"]
    done = json.loads((out / "comparison.json").read_text("utf-8"))["rows"]
    assert [(row["label"], row["steps"]) for row in done] == [("slow", 1), ("slow", 4), ("broken", None)]

    # a process of its own, which starts another for the run that is left; killed in the middle of it
    command = Command(["compare", *words, "--out", out, "--budget", budget, "--seeds", "1"])
    wait_for_updates(out / "runs" / "fast" / "seed-0", command)
    command.send_signal(signal.SIGKILL)
    command.communicate()
    with pytest.raises(UserError, match=r"budget is '41u' but .* was started with '30u'; .*jobs is 2 .*same command"):
        compare(out, *words, budget="41u", jobs=2)

    here.stop_at.clear()
    here.started.clear()
    result = compare(out, *words, budget=budget)
    assert here.started == ["fast/seed-0 resumed"]
    assert [(row["label"], row["steps"]) for row in result["rows"]] == [*[(r["label"], r["steps"]) for r in done],
        ("fast", 1), ("fast", 4)]  # fmt: skip
    for row in result["rows"]:
        assert set(row) == RESULT | (ROW | DISTANCES | OVERLAPS if row["steps"] else {"steps"})
        assert row["objective"] == "integral_kl"
        assert row["updates"] == 30
        assert row["train_seconds"] > 0
    weights = sum(w.numel() for w in final_weights(RunFolder(out / "runs" / "fast" / "seed-0")).values())
    assert result["rows"][-1]["parameters_trained"] == 2 * weights, "student and critic"
    failed = result["rows"][2]["failed"]
    assert failed.startswith("exit code 3: error: 1 updates in a row were not finite")
    assert [row["steps"] for row in result["teacher"]] == [1, 4, 16]
    assert result["reference"]["samples"] == 8
    assert result["settings"]["fast"] == {"train.student.lr": 1e-3}
    for picture in ("frontier.png", "speed.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    text = (out / "comparison.md").read_text("utf-8")
    assert "broken, seed 0, **failed**: exit code 3" in text
    assert "`train.student.lr=0.001`" in text
    printed = capfd.readouterr()
    assert "fast" in printed.out
    assert "to try again" in " ".join(printed.err.split())

    here.started.clear()
    assert compare(out, *words, budget=budget)["rows"] == result["rows"]
    assert here.started == []
    more = compare(out, *words, budget=budget, seeds=2)["rows"]
    assert here.started == ["slow/seed-1", "broken/seed-1", "fast/seed-1"]
    assert [row for row in more if row["seed"] == 0] == result["rows"]
    with pytest.raises(UserError, match=r"seeds is 1 but .* was started with 2"):
        compare(out, *words, budget=budget)


def test_minutes_become_updates_once(made, tmp_path, here, monkeypatch):
    monkeypatch.setattr(schedule, "CALIBRATION", 4)
    monkeypatch.setattr(schedule, "seconds_per_update", lambda lines: len(lines) / 20)  # 4 lines: 0.2 s
    out, words = tmp_path / "out", [made.configs["broken"], made.configs["slow"]]
    result = compare(out, *words, budget="0.01m")
    assert here.started == ["calibration/broken", "calibration/slow", "slow/seed-0"]
    broken, one, four = result["rows"]
    assert broken["failed"].startswith("calibration: exit code 3")
    assert one["updates"] == four["updates"] == 3
    assert one["planned_seconds"] == pytest.approx(0.6)
    here.started.clear()
    monkeypatch.setattr(schedule, "seconds_per_update", lambda lines: 1.0)
    (out / "runs" / "slow" / "seed-0.json").unlink()  # as if killed while it was measured
    again = compare(out, *words, budget="0.01m")
    assert here.started == []
    assert [row["updates"] for row in again["rows"]] == [row["updates"] for row in result["rows"]]
    quality = [[row.get("judge_perplexity") for row in r["rows"]] for r in (result, again)]
    assert quality[0] == quality[1]


def test_auto_is_settled_once_for_all_and_kept_when_the_comparison_goes_on(made, tmp_path, here, machine):
    machine(faster="bfloat16")
    out, words = tmp_path / "out", [made.configs["slow"], "train.precision=auto", "evaluate.precision=auto"]
    result = compare(out, *words, budget="1u")
    run = out / "runs" / "slow" / "seed-0"
    for file in (out / "configs" / "slow.yaml", run / "config.yaml"):
        config = yaml.safe_load(file.read_text("utf-8"))
        assert (config["train"]["precision"], config["evaluate"]["precision"]) == ("bfloat16", "bfloat16")
    assert result["sampling"]["precision"] == "bfloat16"

    machine(faster="float32")
    run.with_suffix(".json").unlink()  # as if killed while it was measured
    again = compare(out, *words, budget="1u")
    assert again["sampling"]["precision"] == "bfloat16"
    assert [row["judge_perplexity"] for row in again["rows"]] == [row["judge_perplexity"] for row in result["rows"]]


def test_unfair_and_mistaken_comparisons_are_refused_before_anything_is_made(made, tmp_path):
    other = tmp_path / "other.yaml"
    values = yaml.safe_load(made.configs["slow"].read_text())
    values["teacher"]["path"] = "bundled:teacher"
    values["train"] |= {"batch": 8, "updates": 99, "ema": 0.5, "micro_batch": 2}
    values |= {"teacher_samples": 9, "teacher_sample_steps": 3}
    values["evaluate"] |= {"watch_steps": 2, "every": 9}
    other.write_text(yaml.safe_dump(values))

    def refused(match, *words, budget="2u"):
        with pytest.raises(UserError, match=match) as caught:
            compare(tmp_path / "out", *words, budget=budget)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    slow, fast = made.configs["slow"], made.configs["fast"]
    refused(r"teacher\.path is '.*/teacher' in slow but 'bundled:teacher' in other; train\.batch is 4 .*same teacher",
        slow, other)  # fmt: skip
    found = differences(load_contenders([slow, other], []))
    assert [f.split()[0] for f in found] == ["teacher.path", "train.batch"], "what may differ was named"
    check_fair(load_contenders([slow, other], ["teacher.path=bundled:teacher", "train.batch=8"]))
    refused(r"--budget '10' is not a budget; give minutes of training, 10m", slow, budget="10")
    refused(r"train.updates is set by --budget; leave it out", slow, "train.updates=3")
    refused(
        r"has evaluate.task, but a comparison .* asks no questions; give evaluate.task=null",
        slow,
        "evaluate.task.path=x",
    )
    refused(r"would be called 'slow'.*rename", slow, slow)
    refused(r"broken.yaml: unknown key train.bach", made.configs["broken"], "train.bach=3")
    refused(r"name configs, such as", "train.batch=3")
    refused(
        r"evaluate.steps has 99, more steps than the 16 tokens",
        slow,
        fast,
        "evaluate.steps=[99]",
        "evaluate.sampler=dilated",
    )
    refused(r"samples=100000|evaluate.samples is 100000", slow, "evaluate.samples=100000")


def test_words_and_budgets(monkeypatch):
    assert split_words(["a.yaml", "train.batch=8", "b.yaml"]) == ([Path("a.yaml"), Path("b.yaml")], ["train.batch=8"])
    monkeypatch.setenv("HOME", "/home/me")
    assert split_words(["~/a.yaml", "x=~/b"]) == ([Path("/home/me/a.yaml")], ["x=~/b"])
    assert parse_budget("10m") == Budget(10.0, None)
    assert parse_budget("2000u") == Budget(None, 2000)
    assert str(parse_budget("2.5m")) == "2.5m"
    for wrong in ("", "0m", "0u", "2.5u", "-1m", "10 minutes", "1e3u"):
        with pytest.raises(UserError):
            parse_budget(wrong)
    lines = [{"tokens": 64, "tokens_per_second": 64 / s} for s in (9.0, 8.0, 7.0, 0.5, 1.0)]
    seconds = seconds_per_update([*lines, {"update": 5, "watch/judge_perplexity": 3.0}])
    assert seconds == pytest.approx(0.75), "the first three are warm-up"
    assert Budget(1.0, None).in_updates(seconds) == 80
    assert Budget(0.001, None).in_updates(99.0) == 1
    assert Budget(None, 7).in_updates(None) == 7


def test_reasons_of_failures():
    assert why_failed(3, "update 1\nerror: the loss went\n  \nleaving\n") == "exit code 3: error: the loss went"
    log = "Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory\n"
    assert why_failed(1, log) == "exit code 1: torch.OutOfMemoryError: CUDA out of memory"
    assert why_failed(-9, "update 8\n") == "killed by SIGKILL, as for want of memory; last line: update 8"
    assert why_failed(-15, "") == "killed by SIGTERM; last line: it said nothing"


def result(label, seed, **figures):
    """A run's, with one row a number of steps; ``figures`` are (judge perplexity, bigram entropy) by "s4"."""
    rows = tuple(
        Row(
            model="student", sampler="ancestral", steps=int(k[1:]), nfe=4.0, nfe_median=4.0, nfe_p95=4.0,
            critic_nfe=0.0, samples=10, judge_perplexity=p, judge_perplexity_ci=(1.0, 2.0), unigram_entropy=2.0,
            bigram_entropy=h, distinct_2=0.1, seconds=float(k[1:]), tokens_per_second=1.0,
        )
        for k, (p, h) in figures.items()
    )  # fmt: skip
    return RunResult(
        label, label, seed, updates=5, planned_seconds=None, train_seconds=2.0, rows_seconds=1.0 if rows else None,
        parameters_trained=7 if rows else None, failed=None if rows else "why", rows=rows,
    )  # fmt: skip


def test_means_ranges_and_who_is_dominated():
    results = [
        *(result("ours", s, s4=(p, 5.0), s8=(8.0, 5.0)) for s, p in enumerate((10.0, 12.0, 14.0))),
        result("dull", 0, s4=(13.0, 4.9), s8=(8.0, 4.9)),
        result("sharp", 0, s4=(9.0, 4.0), s8=(9.0, 5.0)),
        result("sharp", 1),
    ]
    summary = {(one.label, one.steps): one for one in summarise(results, "judge_perplexity")}
    ours = summary["ours", 4]
    assert (ours.seeds, ours.quality) == (3, pytest.approx((10.0 * 12.0 * 14.0) ** (1 / 3)))
    assert (ours.spread, ours.entropy_spread) == ((10.0, 14.0), (5.0, 5.0))
    assert summary["sharp", 4].spread is None
    dominated = {key: one.dominated_by for key, one in summary.items()}
    assert dominated == {
        ("ours", 4): (), ("dull", 4): ("ours",), ("sharp", 4): (),  # sharp: lower perplexity, but lower entropy too
        ("ours", 8): (), ("dull", 8): (), ("sharp", 8): ("ours",),  # dull: not better in perplexity, but not worse
    }  # fmt: skip
    assert spread([1.0]) is None


def comparison(*runs):
    """Of runs, with a teacher at 4 and 64 steps."""
    same, many = (result("", 0, **{k: v}).rows[0] for k, v in (("s4", (20.0, 5.2)), ("s64", (15.0, 5.1))))
    sampling = Sampling(
        sampler="ancestral", sampler_settings={}, draw="exact", precision="float32", process="log-linear", samples=10,
        length=8, batch=5, seed=0, bootstrap=20, device="cpu", torch="2",
    )  # fmt: skip
    real = {field.name: getattr(same, field.name) for field in dataclasses.fields(Figures)}
    return Comparison(
        Asked(["words"], "5u", 2, 1), Machine("riscv", 2, 2), {run.label: {} for run in runs},
        JudgeDescription("judge", 1000, False), sampling, Figures(**real), 64, (same, many), runs,
    )  # fmt: skip


def with_figures(before, **figures):
    """The same comparison, all rows of it having more figures."""
    runs = tuple(
        dataclasses.replace(run, rows=tuple(dataclasses.replace(row, **figures) for row in run.rows))
        for run in before.runs
    )
    teacher = tuple(dataclasses.replace(row, **figures) for row in before.teacher)
    return dataclasses.replace(before, runs=runs, teacher=teacher)


def test_a_file_has_a_row_a_run_and_number_of_steps_and_reads_back(tmp_path):
    ours, lost = result("ours", 0, s4=(10.0, 5.0), s8=(9.0, 5.0)), result("lost", 0)
    written = comparison(ours, lost)
    rows = json.loads(written.save(tmp_path).read_text("utf-8"))["rows"]
    assert [(row["label"], row["steps"], row.get("judge_perplexity")) for row in rows] == [
        ("ours", 4, 10.0), ("ours", 8, 9.0), ("lost", None, None),
    ]  # fmt: skip
    assert rows[-1] == {k: v for k, v in as_json(lost).items() if k != "rows"} | {"steps": None}
    assert Comparison.load(tmp_path) == written
    (tmp_path / "comparison.json").write_text('{"rows": [{"label": "a"}]}')
    with pytest.raises(UserError, match="not a whole comparison; run fewstep compare again"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize("name", ["ablation", "novels", "novels-seeds", "oracle"])
def test_published_comparisons_load_and_are_written_as_they_were(name):
    path = Path(__file__).parents[3] / "docs" / f"{name}.json"
    assert json.dumps(Comparison.load(path).as_json()) == json.dumps(json.loads(path.read_text("utf-8")))


def test_reports_of_judged_exact_and_failed_comparisons():
    judged = comparison(*(result("ours", s, s4=(10.0 + s, 5.0)) for s in (0, 1)), result("lost", 0))
    sections = table_sections(judged)
    assert [[cells[1] for cells in section] for section in sections] == [["real text", "teacher"], ["teacher", "ours"]]
    assert sections[1][1][3:5] == ["10.49", "10.00–11.00"]
    assert "the least and the greatest seed" in comparison_markdown(judged)
    assert "lost, seed 0, **failed**: why" in comparison_markdown(judged)
    exact = comparison(*(result("ours", s, s4=(10.0, 5.0)) for s in (0, 1)))
    exact = with_figures(exact, excess_nats=-0.001)  # an estimate may be
    assert table_sections(exact)[1][1][3] == "-0.0010"
    assert "excess nats" in comparison_markdown(exact)
    close = with_figures(exact, divergence_nats=0.25, divergence_nats_ci=(0.2, 0.3))
    close = dataclasses.replace(close, reference=dataclasses.replace(close.reference, excess_nats=0.01))
    assert table_sections(close)[0][0][3:6] == ["–", "–", "0.0100"]
    assert table_sections(close)[1][1][3:6] == ["0.2500", "0.2500–0.2500", "-0.0010"]
    assert "divergence nats | spread | excess nats" in comparison_markdown(close)
    one = dataclasses.replace(close.runs[0], rows=exact.runs[0].rows)
    partly = dataclasses.replace(close, runs=(one, close.runs[1]))
    assert table_sections(partly)[1][1][3] == "-0.0010", "they are compared by what all of them have"
    for shown in (judged, exact, close, comparison(result("lost", 0))):
        assert "4 steps" in [axes.get_title("left") for axes in frontier_figure(shown).axes]
        assert "teacher" in [line.get_label() for line in speed_figure(shown).axes[0].lines]
        assert len({line.count("|") for line in comparison_markdown(shown).splitlines()[:4]}) == 1


def test_names_are_text_and_not_markup_or_formulas(tmp_path):
    name = "[red]$x_{$:smile:"
    shown = comparison(result(name, 0, s4=(10.0, 5.0)))
    assert name in text(comparison_table(shown))
    for figure in (frontier_figure(shown), speed_figure(shown)):
        save_figure(figure, tmp_path / "figure.png")
