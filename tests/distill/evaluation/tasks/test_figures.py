"""Intervals against published values and by enumeration, and AUP by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from distill.evaluation.tasks.figures import accuracy_interval, accuracy_under_parallelism, difference_interval

LLADA_GSM8K = {
    "Fast-dLLM-LLaDA": [(1.0, 74.79), (2.77, 74.68)],
    "D2F": [(1.0, 74.98), (2.88, 74.39)],
    "dParallel-LLaDA": [(1.0, 74.0), (5.14, 72.63)],
    "d3LLM-LLaDA": [(1.0, 74.02), (9.08, 73.1)],
}
"""d3LLM's AUP_leaderboard/data_llada.yaml."""


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilsons_interval_as_published(right, n, low, high):
    """The last two are Newcombe's examples (1998, Table I)."""
    scores = np.repeat([1.0, 0.0], [right, n - right])
    assert accuracy_interval(scores) == pytest.approx((low, high), abs=6e-5)


def test_wilsons_interval_covers_the_truth_as_often_as_it_says():
    """By enumeration of all numbers of right answers; discreteness makes it waver about 95%."""
    n = 50
    for p in (0.1, 0.37, 0.5, 0.8):
        inside = [
            math.comb(n, k) * p**k * (1 - p) ** (n - k)
            for k in range(n + 1)
            if (ends := accuracy_interval(np.repeat([1.0, 0.0], [k, n - k])))[0] <= p <= ends[1]
        ]
        assert 0.93 < sum(inside) < 0.975


def test_a_paired_interval_by_hand():
    """Of 100 questions 12 are right for one alone and 4 for the other alone: (13 − 5)/102 and its spread."""
    one = np.repeat([1.0, 0.0, 1.0, 0.0], [12, 4, 50, 34])
    other = np.repeat([0.0, 1.0, 1.0, 0.0], [12, 4, 50, 34])
    centre, spread = 8 / 102, 1.959964 * math.sqrt((18 / 102 - (8 / 102) ** 2) / 102)
    assert difference_interval(one, other) == pytest.approx((centre - spread, centre + spread), abs=1e-6)
    assert difference_interval(other, one) == pytest.approx((-centre - spread, -centre + spread), abs=1e-6)


def test_equal_answers_leave_a_doubt_that_shrinks_with_their_number():
    widths = [np.ptp(difference_interval(np.ones(n), np.ones(n))) for n in (10, 100, 1000)]
    assert widths[-1] > 0
    assert all(wide > 5 * narrow for wide, narrow in pairwise(widths))
    low, high = difference_interval(np.ones(10), np.ones(10))
    assert -low == pytest.approx(high)


def test_a_paired_interval_is_narrower_than_an_unpaired_one():
    one, other = np.tile([1.0, 1.0, 0.0, 0.0], 100), np.tile([1.0, 1.0, 0.0, 1.0], 100)
    unpaired = 2 * 1.96 * math.sqrt((0.5 * 0.5 + 0.75 * 0.25) / 400)
    assert np.ptp(difference_interval(one, other)) < 0.7 * unpaired


@pytest.mark.parametrize(
    ("method", "aup"),
    [("Fast-dLLM-LLaDA", 205.78), ("D2F", 213.76), ("dParallel-LLaDA", 358.14), ("d3LLM-LLaDA", 635.72)],
)
def test_aup_of_published_points_by_the_published_formula(method, aup):
    """The last is 74.02 + ½ · 8.08 · (73.1 e^(−3 · 1.88/74.98) + 74.02 e^(−3 · 0.96/74.98)), 74.98 being the best."""
    assert accuracy_under_parallelism(LLADA_GSM8K[method], 74.98) == pytest.approx(aup, abs=0.01)


def test_aup_without_loss_is_the_area_below_the_curve():
    assert accuracy_under_parallelism([(4.0, 80.0), (1.0, 80.0), (2.0, 80.0)], 80.0) == pytest.approx(4 * 80)


def test_aup_leaves_out_what_is_more_than_five_points_worse_than_the_least_parallel():
    kept, lost = [(1.0, 80.0), (2.0, 75.0)], (9.0, 74.9)
    assert accuracy_under_parallelism([*kept, lost], 80.0) == accuracy_under_parallelism(kept, 80.0)
    assert accuracy_under_parallelism([*kept, (9.0, 75.0)], 80.0) > accuracy_under_parallelism(kept, 80.0)


def test_aup_where_nobody_is_ever_right():
    assert accuracy_under_parallelism([(1.0, 0.0), (2.0, 0.0)], 0.0) == 0.0
