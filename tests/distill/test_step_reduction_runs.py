"""A whole run of step reduction: trained, resumed bit for bit, watched, exported and opened again with its planner."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from distill.commands.export import export_command
from distill.config import DistillConfig, load_config
from distill.finished import open_student
from distill.runtime.checkpoints import latest_checkpoint
from distill.training.watch import CollapseWatch
from objectives.step_reduction import StepReductionConfig
from students.planner import PLANNER_FILE, PlannedDenoiser, load_planned
from teachers.errors import UserError
from teachers.families import resolve
from tests.distill.runs import ROOT, RunFolder, distil_here

QUICK = [
    "student.init=bundled:teacher", "length=8", "objective.steps=3", "objective.group_size=2",
    "objective.verifier_masks=1", "train.updates=2", "train.batch=4", "train.log_every=1", "train.checkpoint_every=1",
    "train.precision=float32", "evaluate.every=null",
]  # fmt: skip


def run(path, *overrides, resume=False):
    config = load_config(DistillConfig, ROOT / "configs" / "step_reduction.yaml", [*QUICK, *overrides])
    distil_here(config, path, resume)
    return RunFolder(path)


def planner_of(folder):
    return load_file(folder / PLANNER_FILE)


def test_run_resumes_and_exports_with_its_planner(tmp_path):
    whole = run(tmp_path / "run")
    assert [json.loads(line)["student/steps"] > 1 for line in whole.metrics.read_text().splitlines()] == [True, True]
    one = planner_of(latest_checkpoint(whole) / "student-ema")
    (whole.checkpoints / "update-00000002").rename(tmp_path / "away")
    run(tmp_path / "run", resume=True)
    other = planner_of(latest_checkpoint(whole) / "student-ema")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["out.weight"].abs().max() > 0

    student = open_student(whole.path)
    assert isinstance(student.denoiser, PlannedDenoiser)
    bundled = load_planned(resolve("bundled:teacher"))
    for p, q in zip(student.denoiser.inner.parameters(), bundled.parameters(), strict=True):
        assert torch.equal(p, q), "only the planner was to train"
    exported = planner_of(export_command(whole.path, tmp_path / "export", steps=3))
    assert all(torch.equal(one[name], exported[name]) for name in one)
    assert isinstance(open_student(tmp_path / "export").denoiser, PlannedDenoiser)


def test_rows_too_long_to_measure_and_export_are_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.length is 100000 but the model takes at most \d+ tokens"):
        run(tmp_path / "run", "evaluate.length=100000")
    assert not (tmp_path / "run").exists()


def test_watch_marks_the_fewest_passes_at_the_starts_perplexity():
    watch = object.__new__(CollapseWatch)
    watch.config = SimpleNamespace(entropy_floor=0.9, collapse=0.8, watch_steps=16)
    start = {"judge_perplexity": 10.0, "unigram_entropy": 2.0, "bigram_entropy": 5.0, "nfe": 16.0}
    watch.objective, watch.reference = StepReductionConfig(), object()
    state, marked = {"teacher": start, "teacher_curve": [start], "start": start}, []
    for perplexity, entropy, nfe in (
        (9.0, 5.0, 15.0), (10.3, 5.0, 9.0), (10.1, 5.0, 11.0), (9.0, 5.0, 12.0), (10.1, 4.4, 8.0),
    ):  # fmt: skip
        watch._figures = lambda _, f=(perplexity, 2.0, entropy, nfe): [dict(zip(start, f, strict=True))]
        metrics, best, stopped, state = watch._measure(1, None, state)
        marked.append(best)
        assert stopped is None
        assert metrics["watch/start_nfe"] == 16.0
    assert marked == [True, False, True, False, False]
