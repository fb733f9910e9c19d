"""What docs/long-range.json says was measured, against the bounds as they are computed today."""

import json
from pathlib import Path

import pytest
import torch

from students.bound import least_divergence
from students.samplers import Ancestral
from teachers.oracle.bounds import best_bounds
from teachers.oracle.copies import Copies

REPORT = json.loads((Path(__file__).parents[1] / "docs" / "long-range.json").read_text("utf-8"))


def test_no_student_that_was_distilled_is_below_the_bound():
    for source in REPORT["sources"]:
        own = {bound["steps"]: bound for bound in source["bounds"] if bound["order"] == source["sampler"]}
        rows = [row for row in source["teacher"] + source["students"] if row["steps"] in own]
        assert {row["steps"] for row in rows} == {1, 2, 4}
        assert {row["label"] for row in source["students"]} >= {"integral_kl", "dimo"}
        for row in rows:
            bound = own[row["steps"]]
            assert row["divergence_nats_ci"][1] > bound["lower"] - 4 * bound["lower_error"]


def test_the_bounds_of_copies_are_those_of_today():
    copies = next(source for source in REPORT["sources"] if source["kind"] == "copies")
    source = Copies(**copies["arguments"])
    for bound in copies["bounds"]:
        if bound["order"] == "best":
            assert bound["lower"] == pytest.approx(float(best_bounds(source, bound["steps"]).lower) / 16)
        if bound["order"] == "ancestral":
            today = least_divergence(source, Ancestral(), bound["steps"], 1000, torch.Generator().manual_seed(5))
            assert bound["lower"] == pytest.approx(today.lower, abs=4 * today.lower_error + 1e-9)
