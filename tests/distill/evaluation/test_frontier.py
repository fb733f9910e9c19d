"""The curve over temperatures, and perplexity where it is as varied as real text."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.commands.oracle import oracle_command
from distill.config import EvaluateConfig
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.evaluate import evaluate
from distill.evaluation.frontier import Resampled, Scores, frontiers, reaches, reading
from distill.evaluation.judge import load_judge
from distill.evaluation.metrics import bigram_entropies, bigram_entropy, nats_a_token, resamples, sample_bigrams
from distill.evaluation.results import Row
from distill.evaluation.sample import draw, temperatures_of
from students.samplers import Ancestral, Dilated, Remdm, TopK
from teachers.canvas import Canvas
from teachers.delegating import DelegatingDenoiser
from teachers.families import load_denoiser
from tests.networks import shape, stock

LENGTH = 12
TEMPERATURES = (0.5, 1.0, 1.5)


def row(steps, temperature, model="student", sampler="dilated", nfe=4.0):
    return Row(
        model=model, sampler=sampler, steps=steps, nfe=nfe, nfe_median=nfe, nfe_p95=nfe, critic_nfe=0.0, samples=1,
        judge_perplexity=1.0, judge_perplexity_ci=(1.0, 1.0), unigram_entropy=1.0, bigram_entropy=1.0, distinct_2=1.0,
        temperature=temperature, seconds=1.0, tokens_per_second=1.0,
    )  # fmt: skip


def figures(log_perplexity, unigram, bigram):
    """Of a set of texts whose two resamples differ from it by ± 0.1 nats of perplexity."""
    spread = np.array([0.0, 0.1, -0.1])
    still = np.ones(3)
    return Resampled(log_perplexity + spread, {"unigram": unigram * still, "bigram": bigram * still})


# --- the reading ---------------------------------------------------------------------------------------------------


def test_a_curve_is_read_linearly_between_neighbours_in_entropy():
    entropy, value = np.array([[3.0], [1.0], [2.0]]), np.array([[7.0], [1.0], [2.0]])  # in any order
    for at, expected in ((1.0, 1.0), (1.5, 1.5), (2.0, 2.0), (2.25, 3.25), (3.0, 7.0)):
        assert reading(entropy, value, np.array([at])) == pytest.approx(expected)
    outside = [reading(entropy, value, np.array([at])).item() for at in (0.5, 0.0, -9.0, 4.0, 99.0)]
    assert outside == pytest.approx([0.5, 0.0, 0.0, 12.0, 12.0]), "a resample's curve goes on as it ends, once as far"


def test_each_resample_is_read_on_its_own_curve_and_a_flat_one_in_the_middle():
    entropy, value = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 1.0]]), np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    assert reading(entropy, value, np.array([1.5, 2.5, 1.0])) == pytest.approx([0.5, 0.5, 0.5])


def test_a_curve_reaches_an_entropy_only_with_points_on_both_sides():
    assert reaches([2.0, 1.0], 1.5)
    assert reaches([1.0, 2.0], 2.0)
    assert not reaches([1.0, 2.0], 2.1)
    assert not reaches([1.0, 2.0], 0.9)
    assert not reaches([1.5], 1.5), "one point is no curve"
    assert not reaches([1.5, 1.5], 1.5)


# --- resamples -----------------------------------------------------------------------------------------------------


def test_resamples_hold_all_samples_once_before_those_that_were_drawn():
    rng = np.random.default_rng(5)
    nats, tokens = rng.gamma(3.0, size=9), rng.integers(1, 5, size=9)
    weights = resamples(9, 40, seed=3)
    assert weights.shape == (41, 9)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 9).all()
    chosen = np.random.default_rng(3).integers(9, size=(40, 9))
    draws = nats[chosen].sum(1) / tokens[chosen].sum(1)
    assert nats_a_token(nats, tokens, weights)[1:] == pytest.approx(draws)


@pytest.mark.parametrize("masked", [False, True])
def test_bigram_entropies_of_resamples_are_those_of_the_resampled_rows(masked, monkeypatch):
    monkeypatch.setattr("distill.evaluation.metrics.AT_ONCE", 64)  # a few resamples at a time
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, size=(6, 7))
    written = rng.random((6, 7)) < 0.7 if masked else None
    weights = resamples(6, 12, seed=1)
    found = bigram_entropies(sample_bigrams(rows, written), weights)
    for often, value in zip(weights.astype(int), found, strict=True):
        again = np.repeat(rows, often, axis=0)
        counted = None if written is None else np.repeat(written, often, axis=0)
        assert value == pytest.approx(bigram_entropy(again, counted))


def test_texts_without_a_bigram_have_no_entropy_of_them():
    assert (bigram_entropies(sample_bigrams(np.zeros((3, 1), int)), np.ones((2, 3))) == 0).all()


def test_figures_of_resamples_by_hand():
    rows = np.array([[0, 1, 0], [1, 1, 1]])
    scores = Scores(np.array([4.0, 1.0]), np.array([2, 1]), np.array([0.6, 0.0]), sample_bigrams(rows))
    found = Resampled.of(scores, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert found.log_perplexity == pytest.approx([5 / 3, 2.0])
    assert found.entropy["unigram"] == pytest.approx([0.3, 0.6])
    quarters = -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))  # 01 10 11 11
    assert found.entropy["bigram"] == pytest.approx([quarters, math.log(2)])


# --- frontiers -----------------------------------------------------------------------------------------------------


def test_frontiers_hold_students_against_the_teacher_in_as_many_steps_and_in_many():
    real = figures(0.0, unigram=2.0, bigram=5.0)
    measured = [
        (row(8, 0.9, "teacher"), figures(math.log(10), 1.9, 4.0)),
        (row(8, 1.0, "teacher"), figures(math.log(40), 2.1, 6.0)),
        (row(64, 0.9, "teacher", "ancestral", nfe=20.0), figures(math.log(5), 1.9, 4.9)),
        (row(64, 1.1, "teacher", "ancestral", nfe=40.0), figures(math.log(20), 2.1, 5.1)),
        (row(8, 1.0), figures(math.log(5), 1.8, 4.5)),
        (row(8, 1.1), figures(math.log(20), 1.9, 5.5)),
    ]
    found = {
        (one.model, one.steps, one.axis): one
        for one in frontiers(measured, {one.samples: real for one, _ in measured}, many=64)
    }
    assert len(found) == 6
    teacher, many, student = (
        found[name, steps, "bigram"] for name, steps in (("teacher", 8), ("teacher", 64), ("student", 8))
    )
    assert (teacher.judge_perplexity, many.judge_perplexity, student.judge_perplexity) == pytest.approx((20, 10, 10))
    assert student.judge_perplexity_ci == pytest.approx((10 * math.exp(-0.095), 10 * math.exp(0.095)), rel=1e-2)
    assert (student.to_teacher, student.to_many) == pytest.approx((0.5, 1.0))
    assert student.to_teacher_ci == pytest.approx((0.5, 0.5)), "errors that go together cancel"
    assert (teacher.to_teacher, teacher.to_many) == (None, pytest.approx(2.0))
    assert (many.to_teacher, many.to_many) == (None, None)
    assert (many.nfe, many.entropy) == (30.0, 5.0)
    missed = found["student", 8, "unigram"]
    assert not missed.reached
    assert missed.judge_perplexity is missed.judge_perplexity_ci is missed.to_teacher is missed.to_many is None
    assert found["teacher", 8, "unigram"].judge_perplexity == pytest.approx(20)


def test_fewer_samples_are_read_where_as_many_real_texts_are():
    few, whole = figures(0.0, unigram=2.0, bigram=4.9), figures(0.0, unigram=2.0, bigram=5.0)
    curve = [figures(math.log(10), 1.9, 4.8), figures(math.log(40), 2.1, 5.2)]
    measured = [(replace(row(64, t, "teacher"), samples=4), part) for t, part in zip((0.9, 1.1), curve, strict=True)]
    [_, bigram] = frontiers(measured, {4: few, 8: whole}, many=64)
    assert bigram.judge_perplexity == pytest.approx(10 * 4**0.25)
    assert bigram.entropy == 5.0


# --- sampling at several temperatures ------------------------------------------------------------------------------


class Counting(DelegatingDenoiser):
    """A denoiser that counts the rows it is sent."""

    rows = 0

    def features(self, canvas, select=None):
        self.rows += len(canvas)
        return self.inner.features(canvas, select)


def network():
    return stock(9, LENGTH, sizes=shape(initializer_range=0.5))


def prompts(denoiser, count):
    tokens = torch.randint(0, 7, (count, LENGTH), generator=torch.Generator().manual_seed(2))
    return Canvas.of(torch.where(torch.arange(LENGTH) < 3, tokens, denoiser.spec.mask_id), denoiser.spec.mask_id)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("rule", [Ancestral(), Dilated(), TopK(), Remdm(), Dilated(temperature=1.5, top_p=0.9)])
def test_temperatures_drawn_together_are_those_drawn_alone_bit_for_bit(rule, prompted):
    denoiser = network()
    canvas = prompts(denoiser, 7) if prompted else None
    config = EvaluateConfig(batch=4, sampler=rule)

    def drawn(temperatures):
        return draw(denoiser, config, 4, 7, LENGTH, 0, prompts=canvas, temperatures=temperatures)

    together = drawn(TEMPERATURES)
    assert len({tuple(samples.texts.tokens.flatten().tolist()) for samples in together}) == 3
    for temperature, samples in zip(TEMPERATURES, together, strict=True):
        [alone] = drawn([temperature])
        assert torch.equal(samples.texts.tokens, alone.texts.tokens)
        assert (samples.row_nfe == alone.row_nfe).all()
        assert (samples.log_prob is None) == (alone.log_prob is None)
        assert samples.log_prob is None or (samples.log_prob == alone.log_prob).all()
    [own] = drawn(None)
    assert torch.equal(own.texts.tokens, together[TEMPERATURES.index(rule.temperature)].texts.tokens)


@pytest.mark.parametrize(("steps", "passes"), [(1, 1), (3, 1 + 2 * 3)])
def test_one_first_pass_serves_all_temperatures(steps, passes):
    counting = Counting(network())
    canvas, config = prompts(counting, 5), EvaluateConfig(batch=5, sampler="dilated")
    together = draw(counting, config, steps, 5, LENGTH, 0, prompts=canvas, temperatures=TEMPERATURES)
    assert counting.rows == 5 * passes
    assert [samples.nfe for samples in together] == [steps] * 3, "what a text takes, whoever shares it"


def test_which_temperatures_a_row_has():
    def of(sampler, is_reference=False, **settings):
        return temperatures_of(EvaluateConfig(sampler=sampler, **settings), sampler, is_reference)

    assert of(Dilated()) == (0.9, 1.0, 1.1)
    assert of(Dilated(temperature=0.7)) == (0.7, 0.9, 1.0, 1.1), "the sampler's own is always measured"
    assert of(Dilated(temperature=0.7), temperatures=None) == (0.7,)
    assert of(Dilated(draw="greedy")) == (1.0,)
    assert of(Ancestral(), is_reference=True) == (0.9, 1.0, 1.1)
    assert of(Ancestral(), is_reference=True, teacher_temperatures=[1.1, 0.9]) == (0.9, 1.1)
    assert of(Ancestral(), teacher_temperatures=[1.1, 0.9]) == (0.9, 1.0, 1.1)


# --- an evaluation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An exact source: teacher, judge and real text."""
    out = tmp_path_factory.mktemp("markov") / "source"
    return oracle_command("markov", out, tokens=5, length=LENGTH, rows=1, heldout=1, seed=3)


def test_a_sampler_without_an_error_has_the_source_s_own_perplexity_at_the_entropy_of_its_text(source):
    teacher = load_denoiser(str(source))
    judge = load_judge(str(source), load_tokenizer(str(source)))
    real = teacher.sample(512, torch.Generator().manual_seed(1))
    config = EvaluateConfig(
        steps=[2, LENGTH], teacher_steps=LENGTH, samples=512, batch=512, bootstrap=200, sampler="dilated"
    )
    evaluation = evaluate(teacher, None, judge, config, LENGTH, real)
    assert [(row.steps, row.temperature) for row in evaluation.rows] == [
        (steps, temperature) for steps in (2, LENGTH) for temperature in (0.9, 1.0, 1.1)
    ]
    assert {row.sampler for row in evaluation.rows} == {"dilated"}
    truth = math.exp(teacher.entropy(LENGTH) / LENGTH)
    whole = {one.axis: one for one in evaluation.frontier if one.steps == LENGTH}  # a token a pass: its own law
    assert len(evaluation.frontier) == 2 * len(whole) == 4
    for one in evaluation.frontier:
        low, high = one.judge_perplexity_ci
        assert low < one.judge_perplexity < high
        assert one.entropy == pytest.approx(evaluation.reference.entropy(one.axis))
        if one is whole[one.axis]:
            assert low < truth < high
        else:
            assert one.to_many == pytest.approx(one.judge_perplexity / whole[one.axis].judge_perplexity)
    plain = evaluate(teacher, None, judge, config.model_copy(update={"temperatures": None}), LENGTH, real)
    own = [row for row in evaluation.rows if row.temperature == 1]
    free = {"seconds": 0.0, "tokens_per_second": 0.0, "passes": 0, "peak_host_bytes": 0}
    assert [replace(row, **free) for row in own] == [replace(row, **free) for row in plain.rows], "other temperatures"
    assert not any(one.reached for one in plain.frontier)
    assert evaluate(teacher, None, judge, config, LENGTH).frontier is None, "no real text"
