"""Overlaps with a training text, against a search through all of it."""

from __future__ import annotations

import numpy as np
import pytest

from distill.evaluation.figures.overlap import TrainingText, overlaps


def plain(training, text, start, depth):
    """By looking everywhere."""
    size = 0
    while size < min(depth, len(text) - start):
        part = text[start : start + size + 1]
        if not any(np.array_equal(training[i : i + size + 1], part) for i in range(len(training) - size)):
            break
        size += 1
    return size


@pytest.mark.parametrize(("vocabulary", "depth"), [(2, 12), (3, 30), (50, 20)])
def test_overlaps_are_those_of_a_plain_search(vocabulary, depth):
    generator = np.random.default_rng(vocabulary)
    training = generator.integers(0, vocabulary, 150)
    index = TrainingText.of(training, depth)
    for _ in range(10):
        text = generator.integers(0, vocabulary + 1, 25)  # one token that is not there
        text[5:15] = training[60:70]
        assert index.overlaps(text).tolist() == [plain(training, text, i, depth) for i in range(25)]


def test_a_copied_part_is_found_and_a_copied_text_is_all_overlap():
    generator = np.random.default_rng(0)
    training = generator.integers(0, 200, 5_000)
    copied = generator.integers(200, 400, 100)
    copied[20:60] = training[-40:]
    index = TrainingText.of(training, 100)
    assert index.longest_overlap(copied) == 40
    assert index.longest_overlap(training[1_000:1_100]) == 100
    assert index.longest_overlap(training[1_000:1_200]) == 100, "no more than the depth"
    assert index.longest_overlap(np.array([999])) == 0
    longest, shares = overlaps(index, [copied, training[:50], np.array([999])])
    assert longest.tolist() == [40, 50, 0]
    assert shares.tolist() == [0.4, 1, 0]


def test_text_of_one_token_and_a_bound_on_what_is_searched():
    index = TrainingText.of(np.zeros(300, np.int64), 64)
    assert index.overlaps(np.zeros(40, np.int64)).tolist() == list(range(40, 0, -1))
    assert TrainingText.of(np.arange(100), 8, most=50).longest_overlap(np.arange(46, 60)) == 4
