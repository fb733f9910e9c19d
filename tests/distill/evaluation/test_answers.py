"""What is kept of how a canvas filled."""

from __future__ import annotations

import pytest

from distill.evaluation.answers import PassRecorder
from students.fill import fill
from students.samplers import Dilated, Remdm
from teachers.canvas import Canvas
from teachers.randomness import generator_of
from tests.networks import stock

LENGTH, MASK = 12, 1


@pytest.mark.parametrize("sampler", [Remdm(strategy="cap", eta=0.3), Dilated()])
def test_writes_replayed_up_to_a_pass_are_the_canvas_after_it(sampler):
    denoiser, canvas = stock(32, LENGTH, MASK), Canvas.blank(2, LENGTH, MASK)
    recorder, after = PassRecorder(LENGTH), []

    def record(one):
        recorder(one)
        after.extend(one.after()[row].tolist() for row in (one.asked.rows == 0).nonzero().flatten())

    filled = fill(denoiser, canvas, sampler, 8, generator_of(3), record=record)
    for number, tokens in enumerate(after, 1):
        there = [[token for token, written in writes if written <= number] for writes in recorder.writes]
        assert [writes[-1] if writes else MASK for writes in there] == tokens
    assert [writes[-1][0] for writes in recorder.writes] == filled.tokens[0].tolist()
    again = sum(len(writes) > 1 for writes in recorder.writes)
    assert (again > 0) == isinstance(sampler, Remdm)
