"""What the watch says while a run trains: quality at equal variety, and whether text has collapsed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from distill.training.watch import CollapseWatch, at_equal_entropy, perplexity_as_varied
from objectives.sdtt import SdttConfig


def figures(perplexity, unigram, bigram):
    return {"judge_perplexity": perplexity, "unigram_entropy": unigram, "bigram_entropy": bigram}


CURVE = [figures(9.0, 2.0, 4.8), figures(16.0, 2.2, 5.0), figures(25.0, 2.4, 5.2)]


def test_the_teachers_perplexity_is_read_where_its_entropy_is_the_students():
    found = perplexity_as_varied(figures(10.0, 2.2, 4.9), CURVE)
    assert found == {"unigram": pytest.approx(16.0), "bigram": pytest.approx(12.0)}, "linear in log-perplexity"


def test_nothing_is_read_where_the_teacher_is_never_as_varied():
    assert perplexity_as_varied(figures(10.0, 1.9, 5.3), CURVE) == {}
    assert perplexity_as_varied(figures(10.0, 2.2, 5.0), CURVE[1:2]) == {}, "one temperature is no curve"


def watching(*measured):
    """A watch that measures these figures, one after the other."""
    watch = object.__new__(CollapseWatch)
    watch.config, watch.objective = SimpleNamespace(entropy_floor=0.9, collapse=0.8, watch_steps=8), SdttConfig()
    each = iter(measured)
    watch._figures = lambda _: [next(each)]
    return watch


LINE = [figures(math.exp(t), 2 + t / 10, 5 + t / 5) for t in (1.0, 2.0, 3.0)]
"""A teacher whose log-perplexity is a line over either entropy: t where they are 2 + t / 10 and 5 + t / 5."""


def relative(*of, curve=LINE):
    return math.log(at_equal_entropy(figures(*of), curve)["relative_perplexity"])


def test_a_student_is_compared_with_the_teacher_as_varied_on_the_axis_that_claims_less():
    assert relative(math.exp(1.5), 2.2, 5.4) == pytest.approx(-0.5)
    assert relative(math.exp(1.5), 2.2, 5.3) == pytest.approx(0.0), "bigrams: as good as the teacher at t = 1.5"
    assert relative(math.exp(1.5), 2.1, 5.4) == pytest.approx(0.5), "unigrams: worse than the teacher at t = 1"
    assert relative(math.exp(0.0), 2.0, 5.0) == pytest.approx(0.0), "the line goes on beyond its ends"
    assert relative(math.exp(0.0), 1.0, 4.0) == pytest.approx(1.0), "as far as they are apart: there t = -1"
    assert relative(math.exp(1.5), 2.0, 4.0, curve=LINE[:1]) == pytest.approx(0.5), "one temperature: a level line"
    assert relative(math.exp(1.5), 2.0, 0.0, curve=[figures(math.exp(1.0), 2.0, 0.0)] * 3) == pytest.approx(0.5)


def test_the_best_checkpoint_is_the_best_at_equal_entropy_not_the_least_varied():
    sharp, good, bland = (
        figures(math.exp(t - gain), 2 + t / 10, 5 + t / 5) for t, gain in ((1, 0), (2, 0.5), (1, 0.4))
    )
    assert sharp["judge_perplexity"] < good["judge_perplexity"]
    watch, state, marked = watching(sharp, good, bland), {"teacher": LINE[1], "teacher_curve": LINE}, []
    for update in (10, 20, 30):
        metrics, best, _, state = watch._measure(update, None, state)
        marked.append((best, metrics["watch/relative_perplexity"]))
    assert marked == [
        (True, pytest.approx(1)),
        (True, pytest.approx(math.exp(-0.5))),
        (False, pytest.approx(math.exp(-0.4))),
    ]


def test_a_student_that_is_only_sharper_is_told_beside_the_teacher_as_sharp(capsys):
    watch = watching(figures(12.0, 2.0, 4.9))
    metrics, best, stopped, _ = watch._measure(20, None, {"teacher": CURVE[1], "teacher_curve": CURVE})
    assert metrics["watch/teacher_judge_perplexity"] == 16.0
    assert metrics["watch/teacher_at_unigram_entropy"] == pytest.approx(9.0)
    assert metrics["watch/teacher_at_bigram_entropy"] == pytest.approx(12.0)
    assert best
    assert stopped is None
    said = capsys.readouterr()
    assert "(teacher 16.00, 9.00 at the student's unigram entropy, 12.00 at the student's bigram" in said.out + said.err
