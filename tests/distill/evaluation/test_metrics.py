"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill.evaluation.metrics import (
    bigram_counts,
    bigram_entropy,
    bigrams_without_each,
    distinct_2,
    jackknife_interval,
    mean_interval,
    nats_a_token,
    perplexity,
    quantiles,
    resamples,
    unigram_entropy,
)


def test_perplexity_is_over_all_tokens_not_over_samples():
    nats, tokens = np.array([3.0, 1.0]), np.array([3, 1])
    assert perplexity(nats, tokens) == pytest.approx(math.e)
    assert perplexity(np.array([4.0, 0.0]), np.array([1, 3])) == pytest.approx(math.e)  # mean of samples would be e²


def test_unigram_entropy_is_a_mean_of_per_sample_entropies():
    rows = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]])
    assert unigram_entropy(rows) == pytest.approx((0 + math.log(2) + math.log(4)) / 3)


def test_bigrams_are_pooled_and_none_spans_two_samples():
    rows = np.array([[0, 1, 0, 1], [5, 5, 0, 1]])  # 01 10 01 | 55 50 01
    assert sorted(bigram_counts(rows).tolist()) == [1, 1, 1, 3]
    assert distinct_2(rows) == pytest.approx(4 / 6)
    assert bigram_entropy(rows) == pytest.approx(0.5 * math.log(2) + 3 * math.log(6) / 6)


def test_bigrams_keep_their_order_and_tell_large_ids_apart():
    rows = np.array([[1, 0, 1], [50_256, 2, 50_256]], dtype=np.int64)
    assert bigram_counts(rows).tolist() == [1, 1, 1, 1]
    assert bigram_counts(rows.astype(np.int32)).tolist() == [1, 1, 1, 1]


def test_repeated_phrases_show_in_bigrams_while_unigrams_are_blind():
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(8), (64, 16)), axis=1)
    repeated = np.tile(np.arange(8), (64, 16))
    assert unigram_entropy(shuffled) == pytest.approx(unigram_entropy(repeated))
    assert bigram_entropy(repeated) < bigram_entropy(shuffled) - 1.5
    assert distinct_2(repeated) < distinct_2(shuffled)


def interval(nats, tokens, number, seed, level=0.95):
    return quantiles(nats_a_token(nats, tokens, resamples(len(nats), number, seed))[1:], level)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    truth, covered, trials = 2.0, 0, 300
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        per_token = rng.gamma(4.0, truth / 4.0, size=60)
        low, high = interval(per_token * 127, np.full(60, 127), 400, seed=trial)
        covered += low <= truth <= high
    assert 0.90 <= covered / trials <= 0.98


def test_bootstrap_interval_is_seeded_and_resamples_whole_samples():
    nats, tokens = np.array([10.0, 40.0, 5.0, 12.0]), np.array([10, 20, 5, 8])
    spread = np.random.default_rng(0).gamma(4.0, size=50)
    first = interval(spread, np.ones(50), 500, seed=1)
    assert first == interval(spread, np.ones(50), 500, seed=1)
    assert first != interval(spread, np.ones(50), 500, seed=2)
    low, high = interval(nats, tokens, 4000, seed=1, level=1.0)  # every sample the same one: 1 and 2 nats
    assert (low, high) == pytest.approx((1, 2))
    assert interval(np.full(9, 6.0), np.full(9, 3), 100, seed=0) == pytest.approx((2, 2))


@pytest.mark.parametrize("partly", [False, True])
def test_bigrams_without_each_sample_are_those_of_the_others(partly):
    generator = np.random.default_rng(0)
    rows = generator.integers(4, size=(5, 6))
    written = generator.random((5, 6)) < 0.8 if partly else None
    entropies, shares = bigrams_without_each(rows, written)
    for number in range(5):
        others = np.arange(5) != number
        part = None if written is None else written[others]
        assert entropies[number] == pytest.approx(bigram_entropy(rows[others], part), abs=1e-12)
        assert shares[number] == pytest.approx(distinct_2(rows[others], part), abs=1e-12)


def test_intervals_of_variety_hold_another_draw():
    """A figure of a second set of texts of the same law lies within √2 of the first one's interval, 95% of the time."""
    generator, hits = np.random.default_rng(1), []
    law = generator.dirichlet(np.full(30, 0.3))
    for _ in range(200):
        first, second = (generator.choice(30, size=(64, 16), p=law) for _ in range(2))
        low, high = jackknife_interval(bigram_entropy(first), bigrams_without_each(first)[0])
        hits.append(abs(bigram_entropy(second) - bigram_entropy(first)) <= 2**0.5 * (high - low) / 2)
    assert 0.9 <= np.mean(hits) <= 0.99


def test_a_mean_and_its_interval():
    low, high = mean_interval(np.array([1.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 1.959964, 2 + 1.959964))
    assert mean_interval(np.array([8.0])) == (8.0, 8.0)
    assert mean_interval(np.full(9, 8.0)) == (8.0, 8.0)
