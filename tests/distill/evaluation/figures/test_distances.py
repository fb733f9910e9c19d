"""Distances between sets of texts, at the values that they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill.evaluation.figures.energy import energy_distance, energy_null
from distill.evaluation.figures.lengths import length_distance, length_quantiles
from distill.evaluation.figures.mauve import SCALING, cluster_count, frontier_area, k_means, mauve


def normal(count, mean=0.0, seed=0, size=1):
    return np.random.default_rng(seed).normal(mean, 1, (count, size))


# --- MAUVE ---------------------------------------------------------------------------------------------------------


def test_equal_laws_have_mauve_one_and_disjoint_ones_what_the_scaling_says():
    law, other = np.array([0.5, 0.3, 0.2, 0, 0]), np.array([0, 0, 0, 0.4, 0.6])
    assert frontier_area(law, law) == pytest.approx(1)
    # KL(q ‖ r) is −log(1 − λ) and KL(p ‖ r) is −log λ, so the curve is ((1 − λ)^c, λ^c): its area is (c!)² / (2c)!
    exact = math.factorial(int(SCALING)) ** 2 / math.factorial(int(2 * SCALING))
    assert exact == pytest.approx(1 / 252)
    assert frontier_area(law, other) == pytest.approx(exact, rel=0.05), "25 points of the curve"


def test_the_area_falls_as_a_law_moves_away_and_has_no_direction():
    law = np.array([0.5, 0.5])
    areas = [frontier_area(law, np.array([0.5 + shift, 0.5 - shift])) for shift in (0, 0.1, 0.2, 0.4, 0.5)]
    assert areas == sorted(areas, reverse=True)
    skewed = np.array([0.8, 0.2])
    assert frontier_area(law, skewed) == pytest.approx(frontier_area(skewed, law), rel=1e-6)


def test_mauve_of_states():
    same, far = normal(200, size=6), normal(200, size=6, seed=1)
    assert mauve(same, same, 0) == pytest.approx(1)
    assert mauve(same, far, 0) > 0.9
    apart = np.zeros(6)
    apart[0] = 30
    assert mauve(same + apart, far - apart, 0) < 0.005
    assert mauve(same[:1].repeat(200, 0), far, 0) < 0.05, "one text over and over"
    assert mauve(same, far, 3) == mauve(same, far, 3)


def test_clusters_are_as_many_as_published_and_found_where_they_are():
    assert [cluster_count(*sizes) for sizes in ((5_000, 5_000), (256, 1_000), (3, 900))] == [500, 26, 2]
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = np.repeat([0, 1, 2], 40)
    labels = k_means(centres[truth] + normal(120, size=2), 3, np.random.default_rng(0))
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 3


# --- energy distance -----------------------------------------------------------------------------------------------


def test_energy_distance_has_its_closed_forms():
    assert energy_distance(np.zeros((3, 2)), np.tile([3.0, 4.0], (5, 1))) == pytest.approx(10), "2 × 5, and no spread"
    shift = 1.5  # E|N(m, 2)| = 2/√π · e^(−m²/4) + m·erf(m/2)
    across = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    exact = 2 * across - 4 / math.sqrt(math.pi)
    assert energy_distance(normal(3_000), normal(3_000, shift, 1)) == pytest.approx(exact, abs=0.12)


def test_energy_distance_has_no_bias_and_equal_laws_stay_below_the_null_as_often_as_it_says():
    values, below = [], 0
    for trial in range(120):
        ours, real = normal(20, seed=2 * trial, size=3), normal(30, seed=2 * trial + 1, size=3)
        values.append(energy_distance(ours, real))
        below += values[-1] <= energy_null(ours, real, trial)
    assert np.mean(values) == pytest.approx(0, abs=3 * np.std(values) / math.sqrt(len(values)))
    assert 0.89 <= below / 120 <= 0.99
    assert energy_distance(ours + 1, real) > energy_null(ours + 1, real, 0)


# --- lengths -------------------------------------------------------------------------------------------------------


def test_lengths():
    assert length_distance(np.array([1, 2, 3]), np.array([2, 3, 4])) == pytest.approx(1)
    assert length_distance(np.array([5]), np.array([1, 1, 3, 3])) == pytest.approx(3)
    assert length_distance(np.array([4, 2]), np.array([2, 4])) == 0
    assert length_quantiles(np.arange(101)) == (5, 50, 95)
