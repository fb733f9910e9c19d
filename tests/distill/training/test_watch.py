"""What the watch says while a run trains: quality at equal variety, and whether text has collapsed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distill.training.watch import CollapseWatch, perplexity_as_varied


def figures(perplexity, unigram, bigram):
    return {"judge_perplexity": perplexity, "unigram_entropy": unigram, "bigram_entropy": bigram}


CURVE = [figures(9.0, 2.0, 4.8), figures(16.0, 2.2, 5.0), figures(25.0, 2.4, 5.2)]


def test_the_teachers_perplexity_is_read_where_its_entropy_is_the_students():
    found = perplexity_as_varied(figures(10.0, 2.2, 4.9), CURVE)
    assert found == {"unigram": pytest.approx(16.0), "bigram": pytest.approx(12.0)}, "linear in log-perplexity"


def test_nothing_is_read_where_the_teacher_is_never_as_varied():
    assert perplexity_as_varied(figures(10.0, 1.9, 5.3), CURVE) == {}
    assert perplexity_as_varied(figures(10.0, 2.2, 5.0), CURVE[1:2]) == {}, "one temperature is no curve"


def test_a_student_that_is_only_sharper_is_told_beside_the_teacher_as_sharp(capsys):
    watch = object.__new__(CollapseWatch)
    watch.config = SimpleNamespace(entropy_floor=0.9, collapse=0.8, watch_steps=8)
    watch.objective = SimpleNamespace(ranks=lambda figures, start: figures["judge_perplexity"])
    watch._figures = lambda _: [figures(12.0, 2.0, 4.9)]
    metrics, best, stopped, _ = watch._measure(20, None, {"teacher": CURVE[1], "teacher_curve": CURVE})
    assert metrics["watch/teacher_judge_perplexity"] == 16.0
    assert metrics["watch/teacher_at_unigram_entropy"] == pytest.approx(9.0)
    assert metrics["watch/teacher_at_bigram_entropy"] == pytest.approx(12.0)
    assert best
    assert stopped is None
    said = capsys.readouterr()
    assert "(teacher 16.00, 9.00 at the student's unigram entropy, 12.00 at the student's bigram" in said.out + said.err
