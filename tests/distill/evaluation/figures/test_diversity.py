"""Figures of variety against values worked out by hand, and against a plain count."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from distill.evaluation.figures.diversity import (
    distinct,
    distinct_without_each,
    longest_runs,
    ngrams,
    repetitions,
    self_bleu,
)
from distill.evaluation.metrics import distinct_2


def texts(*rows):
    return [np.array(row, dtype=np.int64) for row in rows]


def random_texts(count=20, vocabulary=4, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocabulary, size) for size in generator.integers(1, 30, count)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngrams_are_equal_where_their_tokens_are_and_none_spans_two_texts(order):
    rows = random_texts()
    names = {}
    for row, numbers in zip(rows, ngrams(rows, order), strict=True):
        plain = [tuple(row[start : start + order]) for start in range(len(row) - order + 1)]
        assert [names.setdefault(gram, number) for gram, number in zip(plain, numbers, strict=True)] == [*numbers]
    assert len(set(names.values())) == len(names)


def test_distinct_is_what_the_pairs_of_the_table_are_and_counts_longer_ngrams():
    rows = np.array([[0, 1, 0, 1], [5, 5, 0, 1]])  # 01 10 01 | 55 50 01
    assert distinct([*rows], 2) == distinct_2(rows) == pytest.approx(4 / 6)
    assert distinct([*rows], 3) == pytest.approx(4 / 4)
    assert distinct(texts([1, 1, 1, 1, 1], [1, 1, 1, 1]), 4) == pytest.approx(1 / 3)
    assert distinct(texts([1, 2]), 4) == 0


@pytest.mark.parametrize("order", [3, 4])
def test_distinct_without_each_is_that_of_the_others(order):
    rows = random_texts(12)
    found = distinct_without_each(rows, order)
    assert found == pytest.approx([distinct(rows[:at] + rows[at + 1 :], order) for at in range(12)])


def test_repetition_is_within_a_text_and_knows_the_known_texts():
    assert repetitions(texts([1, 2, 3, 4, 5, 6]), 4) == 0
    period = np.tile(np.arange(5), 20)  # 97 n-grams of which 5 differ
    assert repetitions([period], 4) == pytest.approx(1 - 5 / 97)
    half = np.arange(50)
    assert repetitions([np.concatenate([half, half])], 4) == pytest.approx(1 - 50 / 97), "a mirror repeats 47 of 97"
    assert repetitions([np.arange(10), np.arange(10)], 4).tolist() == [0, 0], "two equal texts do not repeat themselves"
    assert len(repetitions(texts([1, 2, 3]), 4)) == 0
    assert repetitions([period, np.array([1])], 4) == repetitions([period], 4), "a text without n-grams does not count"


def test_longest_run_is_of_one_token():
    assert longest_runs(texts([1, 1, 2, 1, 1, 1], [4])).tolist() == [3, 1]
    assert longest_runs(texts([7] * 9)) == 9


def test_self_bleu_of_equal_texts_is_one_and_of_disjoint_texts_is_its_smoothing():
    assert self_bleu(texts(*[range(12)] * 5)) == pytest.approx(1)
    apart = [np.arange(12) + 100 * number for number in range(5)]
    assert self_bleu(apart) == pytest.approx(math.prod(0.1 / (12 - order + 1) for order in (1, 2, 3, 4)) ** 0.25)


def test_self_bleu_is_that_of_a_plain_count():
    rows = [row for row in random_texts(30, 5, 1) if len(row) >= 4][:12]
    assert self_bleu(rows) == pytest.approx(np.mean([plain_bleu(rows, i) for i in range(len(rows))]))
    assert self_bleu(rows, most=6) == pytest.approx(self_bleu(rows[:6]))


def plain_bleu(rows, number):
    """As the definition says: clipped by the most of any other text, the reference of the nearest length."""
    own, others = rows[number], [row for i, row in enumerate(rows) if i != number]
    log = 0.0
    for order in (1, 2, 3, 4):
        grams = [Counter(tuple(row[i : i + order]) for i in range(len(row) - order + 1)) for row in (own, *others)]
        matches = sum(min(count, max(other[gram] for other in grams[1:])) for gram, count in grams[0].items())
        log += math.log((matches or 0.1) / grams[0].total()) / 4
    nearest = min((len(row) for row in others), key=lambda size: abs(size - len(own)))
    return math.exp(min(0, 1 - nearest / len(own)) + log)
