"""An export's table, measured again: what tells the truth passes, and one figure that does not is named."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import fewstep
from distill.commands.evaluate import evaluate_command
from distill.commands.export import export_command
from distill.commands.verify import verify_command
from distill.evaluation.metrics import (
    bigram_entropy,
    bigrams_without_each,
    distinct_2,
    jackknife_interval,
    mean_interval,
    nats_a_token,
    perplexity,
    quantiles,
    resamples,
    unigram_entropies,
)
from distill.evaluation.results import Evaluation, JudgeDescription, Row, Sampling
from distill.evaluation.verification import checks_of, student_quantile
from distill.runtime.exits import DIFFERS
from teachers.errors import UserError
from teachers.oracle.markov import random_source
from tests.distill.runs import here

FEW = ["samples=24", "steps=[2, 4]", "teacher_steps=4", "temperatures=null", "bootstrap=200"]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Of a short run that was evaluated."""
    root = tmp_path_factory.mktemp("verify")
    run = here(root / "run", "train.updates=1").path
    evaluate_command(run, overrides=FEW)
    return export_command(run, root / "export")


def changed(export, tmp_path, change):
    """A copy whose evaluation says something else."""
    copy = shutil.copytree(export, tmp_path / "copy")
    values = json.loads((copy / "evaluation.json").read_text("utf-8"))
    change(values)
    (copy / "evaluation.json").write_text(json.dumps(values), "utf-8")
    return copy


def row_of(values, steps):
    return next(row for row in values["rows"] if (row["model"], row["steps"]) == ("student", steps))


def test_an_export_passes(export, capsys):
    verify_command(export)
    said = capsys.readouterr()
    assert "as fewstep evaluate --student FOLDER --data bundled:novels" in said.err
    assert "all within" in said.out
    assert "not measured: the teacher's rows" in " ".join(said.out.split())


def test_the_same_seed_gives_equal_figures(export):
    verification = fewstep.verify(export, same_seed=True, teacher="bundled:teacher")
    assert verification.passed, verification.table()
    assert verification.seed == 0
    assert verification.left_out == ()
    assert {check.row for check in verification.checks} >= {"judge", "teacher", "student", "real text"}
    assert all(check.stated == pytest.approx(check.measured, rel=1e-6) for check in verification.checks)


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("judge_perplexity", 5.0),
        ("bigram_entropy", 4.0),
        ("nfe", 1.5),
        ("unigram_entropy", 2.9),
        ("repetition_4", 0.9),
        ("samples", 25),
    ],
)
def test_one_changed_figure_is_named(export, tmp_path, capsys, figure, value):
    def change(values):
        row = row_of(values, 2)
        if figure != "samples":
            shift = value - row[figure]
            row[f"{figure}_ci"] = [end + shift for end in row[f"{figure}_ci"]]
        row[figure] = value

    copy = changed(export, tmp_path, change)
    (copy / "README.md").unlink()  # which would tell at once
    with pytest.raises(SystemExit) as end:
        verify_command(copy, steps=[2])
    assert end.value.code == DIFFERS
    lines = [line for line in capsys.readouterr().err.splitlines() if "is not what is stated" in line]
    assert len(lines) == 1
    assert f": {figure} is not" in lines[0]
    assert lines[0].startswith("student, 2 steps")


def test_a_figure_without_an_interval_is_verified_on_the_same_texts(export, tmp_path):
    def change(values):
        row_of(values, 2)["self_bleu"] = 0.123

    copy = changed(export, tmp_path, change)
    other = fewstep.verify(copy, steps=[2])
    assert other.passed, other.table()
    assert "self_bleu" in other.unverified
    assert "only --same-seed verifies them: self bleu" in " ".join(other.table().split())
    same = fewstep.verify(copy, steps=[2], same_seed=True)
    assert [check.figure for check in same.failures] == ["self_bleu"]
    assert same.unverified == ()


def test_a_figure_outside_its_own_interval_is_named(export, tmp_path):
    """However little it is changed."""

    def change(values):
        row = row_of(values, 2)
        row["judge_perplexity"] = row["judge_perplexity_ci"][0] * 0.99

    verification = fewstep.verify(changed(export, tmp_path, change), steps=[2])
    assert ("judge_perplexity", "student, 2 steps") in {
        (check.figure, check.row.partition(", temp")[0]) for check in verification.failures
    }


def test_an_interval_stated_too_wide_excuses_nothing(export, tmp_path):
    def change(values):
        row = row_of(values, 2)
        row["judge_perplexity"], row["judge_perplexity_ci"] = 5.0, [0.001, 10000.0]

    failures = fewstep.verify(changed(export, tmp_path, change), steps=[2]).failures
    assert "judge_perplexity" in {check.figure for check in failures}


def test_a_changed_card_is_named(export, tmp_path):
    copy = shutil.copytree(export, tmp_path / "copy")
    card = (copy / "README.md").read_text("utf-8")
    line = next(line for line in card.splitlines() if line.startswith("| student | 4 "))
    figure = re.findall(r"\| (\d+\.\d\d) \|", line)[0]
    (copy / "README.md").write_text(card.replace(line, line.replace(f"| {figure} |", "| 3.21 |")), "utf-8")
    (failure,) = fewstep.verify(copy, steps=[2], same_seed=True).failures
    assert (failure.row, failure.figure, failure.stated) == ("README.md, student, 4 steps", "judge PPL", 3.21)


def test_a_row_that_the_table_lacks_is_named(export, tmp_path):
    def change(values):
        values["rows"].remove(row_of(values, 2))

    failures = fewstep.verify(changed(export, tmp_path, change), steps=[2]).failures
    assert [(check.figure, check.measured) for check in failures if check.row.startswith("student, 2")] == [
        ("steps", 2)
    ]


def test_what_can_not_be_verified_is_refused(export, tmp_path):
    with pytest.raises(UserError, match=r"has no evaluation\.json.* run fewstep evaluate before fewstep export"):
        fewstep.verify("bundled:teacher")
    with pytest.raises(UserError, match=r"steps 3 has no row in the evaluation of .*; it has 2, 4"):
        fewstep.verify(export, steps=[3])
    with pytest.raises(UserError, match=r"judge 'gone', which .* was measured with, is not here; name its folder with"):
        fewstep.verify(changed(export, tmp_path, lambda v: v["method"]["settings"].update(judge="gone")))
    with pytest.raises(UserError, match="leave out --seed or --same-seed"):
        fewstep.verify(export, seed=3, same_seed=True)


def test_a_student_in_memory_is_exported_with_its_evaluation(export, tmp_path):
    student = fewstep.load_student(export)
    assert student.finished.training.updates == 1
    evaluation = fewstep.evaluate(student, steps=[2], samples=16, temperatures=None, bootstrap=50)
    assert (evaluation.cost.student_passes, evaluation.cost.seeds) == (evaluation.rows[0].passes, (0,))
    assert evaluation.training == student.finished.training
    assert "training:" in evaluation.table()
    folder = student.export(tmp_path / "out", evaluation=evaluation)
    assert fewstep.verify(folder, same_seed=True).passed


def test_an_evaluation_of_an_earlier_version_is_refused(export, tmp_path):
    copy = changed(export, tmp_path, lambda values: values.pop("method"))
    with pytest.raises(UserError, match="of an earlier version and does not say how it was measured"):
        fewstep.verify(copy)


def table(source, judge, rows, seed):
    """An evaluation of independent draws from a source: rows of figures, under another one as the judge."""
    generator = torch.Generator().manual_seed(seed)
    measured = []
    for steps in range(1, rows + 1):
        tokens = source.sample(48, generator, 16)
        texts, nats = tokens.numpy(), -judge.log_likelihood(tokens).numpy()
        counts = np.full(len(texts), 16)
        entropies, shares = bigrams_without_each(texts)
        measured.append(
            Row(
                model="student", sampler="exact", steps=steps, nfe=8.0, nfe_ci=(8.0, 8.0), nfe_median=8.0, nfe_p95=8.0,
                critic_nfe=0.0, samples=48, judge_perplexity=perplexity(nats, counts),
                judge_perplexity_ci=quantiles(np.exp(nats_a_token(nats, counts, resamples(48, 200, seed))[1:])),
                unigram_entropy=float(unigram_entropies(texts).mean()),
                unigram_entropy_ci=mean_interval(unigram_entropies(texts)), bigram_entropy=bigram_entropy(texts),
                bigram_entropy_ci=jackknife_interval(bigram_entropy(texts), entropies), distinct_2=distinct_2(texts),
                distinct_2_ci=jackknife_interval(distinct_2(texts), shares), seconds=1.0, tokens_per_second=1.0,
            )
        )  # fmt: skip
    return Evaluation(
        judge=JudgeDescription("judge", 64, False),
        sampling=Sampling("exact", {}, "exact", "float32", "log-linear", 48, 16, 48, seed, 200, "cpu", ""),
        reference=None,
        rows=tuple(measured),
    )


def chain(seed):
    return random_source(8, 1, 1.5, seed, 16)


def test_a_table_that_tells_the_truth_passes_19_times_in_20():
    """By simulation of the rule, on a law whose draws are exact: 200 pairs of tables of three rows."""
    source, judge = chain(0), chain(1)
    passed = [
        all(check.within for check in checks_of(table(source, judge, 3, 2 * n), table(source, judge, 3, 2 * n + 1)))
        for n in range(200)
    ]
    assert np.mean(passed) >= 0.95
    # and tables of another law do not
    other = [checks_of(table(source, judge, 3, n), table(chain(2), judge, 3, 1000 + n)) for n in range(20)]
    assert not any(all(check.within for check in checks) for checks in other)


def test_earlier_files_borrow_the_error_of_the_new_measurement():
    source, judge = chain(0), chain(1)
    old, new = table(source, judge, 1, 0), table(source, judge, 1, 1)
    without = replace(old.rows[0], bigram_entropy_ci=None)
    (check,) = (c for c in checks_of(replace(old, rows=(without,)), new) if c.figure == "bigram_entropy")
    low, high = new.rows[0].bigram_entropy_ci
    error = (high - low) / (2 * 1.959964)
    q = student_quantile(1 - 0.05 / (2 * 4), 47)  # four figures vary
    assert check.interval == pytest.approx(
        (without.bigram_entropy - q * 2**0.5 * error, without.bigram_entropy + q * 2**0.5 * error)
    )


@pytest.mark.parametrize(
    ("probability", "degrees", "value"), [(0.975, 15, 2.131), (0.999, 31, 3.375), (0.9997, 63, 3.614)]
)
def test_students_quantile(probability, degrees, value):
    assert student_quantile(probability, degrees) == pytest.approx(value, abs=2e-3)
