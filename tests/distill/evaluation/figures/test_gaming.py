"""Samplers that game perplexity (2606.08417), each caught by another figure of the table, on the bundled novels.

A sampler games perplexity if it has a lower one than honest text and is worse. Which figure catches it, and by how much
against real text, is what these tests hold.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.config import EvaluateConfig
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.figures.gauges import Gauges
from distill.evaluation.judge import load_judge
from distill.evaluation.metrics import perplexity
from distill.evaluation.reference import held_out, heldout_text
from distill.evaluation.sample import draw
from distill.evaluation.texts import Texts
from distill.models import load_named
from teachers.source import model_folder

TEXTS, LENGTH = 96, 128


@pytest.fixture(scope="module")
def bench():
    tokenizer = load_tokenizer(str(model_folder("bundled:judge")))
    judge = load_judge("bundled:judge", tokenizer, device="cpu")
    text = held_out(heldout_text("bundled:novels", LENGTH, tokenizer), 0, TEXTS, LENGTH, tokenizer, mask_id=2)
    assert text.others is not None
    gauges = Gauges(real=text.others.texts(()), apart=True, featuriser=judge)

    def measure(rows, distances=True):
        score = judge.score(rows)
        own = {"perplexity": perplexity(score.nats, score.tokens), "unigram_entropy": score.unigram_entropy.mean()}
        return SimpleNamespace(**own, **gauges.figures(Texts(rows), distances))

    return SimpleNamespace(tokenizer=tokenizer, judge=judge, real=text.rows, measure=measure)


@pytest.fixture(scope="module")
def real(bench):
    """Real text against other real text: what each figure is where nothing is wrong."""
    found = bench.measure(bench.real)
    assert found.mauve > 0.7
    assert found.energy_distance < found.energy_null
    assert abs(found.gradient_moment) < 0.15
    assert found.repetition_4 < 0.1
    assert found.self_bleu < 0.9
    return found


def test_one_phrase_over_and_over_is_caught_by_repetition(bench, real):
    phrase = bench.tokenizer(" and then he said that he had", add_special_tokens=False)["input_ids"]
    turns = np.random.default_rng(0).integers(len(phrase), size=TEXTS)
    found = bench.measure(torch.tensor(np.stack([np.resize(np.roll(phrase, turn), LENGTH) for turn in turns])))
    assert found.perplexity < 0.8 * real.perplexity, "it games perplexity"
    assert found.repetition_4 > 0.75 > 10 * real.repetition_4
    assert found.distinct_4 < 0.02 * real.distinct_4
    assert found.energy_distance > 20 * found.energy_null
    assert found.gradient_moment > 3


def test_a_few_good_texts_are_caught_by_self_bleu_and_mauve(bench, real):
    nats = bench.judge.score(bench.real).nats
    best = bench.real[np.argsort(nats)[:4].copy()]
    found = bench.measure(best[torch.arange(TEXTS) % 4])
    assert found.perplexity < 0.9 * real.perplexity, "it games perplexity"
    assert abs(found.unigram_entropy / real.unigram_entropy - 1) < 0.05, "and the entropy beside it sees nothing"
    assert found.repetition_4 < 0.15, "and repetition within a text little"
    assert found.self_bleu == pytest.approx(1)
    assert found.distinct_4 < 0.2 * real.distinct_4
    assert found.mauve < 0.05 < 0.1 * real.mauve
    assert found.energy_distance > 5 * found.energy_null


def test_a_low_temperature_behind_noise_is_caught_by_energy_distance(bench, real):
    """Sharper draws, and one token in twenty from the marginal, so that n-grams are as many as in real text."""
    teacher = load_named({"teacher": "bundled:teacher"}, torch.float32)[0]["teacher"].requires_grad_(False)

    def written(temperature):
        rule = {"name": "dilated", "temperature": temperature}
        config = EvaluateConfig(sampler=rule, samples=TEXTS, batch=TEXTS)
        [samples] = draw(teacher, config, 8, TEXTS, LENGTH, 0)
        return samples.texts.tokens

    sharp, generator = written(0.7), np.random.default_rng(0)
    noise = torch.from_numpy(generator.choice(bench.real.flatten().numpy(), (TEXTS, LENGTH)))
    disguised = torch.where(torch.from_numpy(generator.random((TEXTS, LENGTH)) < 0.05), noise, sharp)
    honest, found = bench.measure(written(1.0)), bench.measure(disguised)
    assert found.perplexity < honest.perplexity, "it games perplexity"
    assert found.distinct_4 > 0.9 * real.distinct_4, "as varied as real text"
    assert abs(found.repetition_4 - real.repetition_4) < 0.05
    assert found.energy_distance > 10 * found.energy_null
    assert found.energy_distance > 2 * honest.energy_distance


def test_a_mirror_is_caught_by_repetition_alone(bench, real):
    """The first half of real text again: MAUVE and the Gradient Moment see little, which is why there are others."""
    found = bench.measure(torch.cat([bench.real[:, :64], bench.real[:, :64]], 1), distances=False)
    assert found.perplexity < 1.3 * real.perplexity
    assert found.repetition_4 > 0.48
