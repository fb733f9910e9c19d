"""The bound of a continuation against enumeration, and against the law itself where predictions agree."""

import itertools
import math

import pytest
import torch

from distill.evaluation.likelihood import Pair, in_blocks, log_likelihoods, masks, streams, written_greedily
from students.samplers import TopK
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.oracle.markov import random_source
from tests.networks import mdlm, stock
from tests.tabular import TabularDenoiser

PAIRS = [Pair([0, 1], [2, 0, 1, 1]), Pair([], [1, 2, 2]), Pair([2], [1]), Pair([1, 0, 2], [0, 0])]


def conditional(source, pair):
    """log p(continuation | context) of an exact source."""
    whole = float(source.log_likelihood(torch.tensor([[*pair.context, *pair.continuation]]))[0])
    return whole - (float(source.log_likelihood(torch.tensor([pair.context]))[0]) if pair.context else 0.0)


@torch.no_grad()
def bound(denoiser, pair):
    """The bound by hand: over all orders in which tokens could be written, one after the other."""
    tokens, first = torch.tensor([*pair.context, *pair.continuation]), len(pair.context)
    sums = []
    for order in itertools.permutations(range(first, len(tokens))):
        z, total = tokens.clone(), 0.0
        z[first:] = denoiser.spec.mask_id
        for place in order:
            canvas = Canvas.of(z[None].clone(), denoiser.spec.mask_id)
            total += float(denoiser.log_probs(canvas)[0, place, tokens[place]])
            z[place] = tokens[place]
        sums.append(total)
    return sum(sums) / len(sums)


def values(*arguments, **settings):
    return [answer.log_prob for answer in log_likelihoods(*arguments, **settings)]


@pytest.mark.parametrize("estimate", ["elbo", "left_to_right"])
def test_of_an_exact_law_it_is_the_law(estimate):
    source = random_source(3, 1, 1.5, 0, 8)
    expected = [conditional(source, pair) for pair in PAIRS]
    found = log_likelihoods(source, PAIRS, samples=15, seed=0, batch=4, estimate=estimate)
    assert [answer.log_prob for answer in found] == pytest.approx(expected, abs=1e-5)
    assert [answer.passes for answer in found] == ([15, 7, 1, 3] if estimate == "elbo" else [4, 3, 1, 2])


def test_of_predictions_that_disagree_it_is_the_mean_over_all_orders():
    table = TabularDenoiser(4, 6, seed=1)
    pairs = [Pair([0, 1], [2, 0, 1, 1]), Pair([], [1, 2, 2, 0, 1, 0])]
    assert values(table, pairs, 63, 0, 8) == pytest.approx([bound(table, pair) for pair in pairs], rel=1e-9)


def test_samples_are_unbiased_and_more_of_them_are_closer():
    table = TabularDenoiser(4, 6, seed=1)
    pair = Pair([0], [2, 0, 1, 1, 2])
    exact = values(table, [pair], 31, 0, 8)[0]
    few, many = (torch.tensor([values(table, [pair], n, seed, 8)[0] for seed in range(300)]) for n in (4, 16))
    for draws in (few, many):
        assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / math.sqrt(300)
    assert float(many.std()) < 0.6 * float(few.std())


@pytest.mark.parametrize(("length", "samples"), [(1, 1), (3, 7), (5, 4), (5, 16), (40, 8)])
def test_every_token_is_masked_as_often_as_the_process_masks_it(length, samples):
    """Σ over passes of weight · masked is 1/k-weighted: of each token 1 in the mean, and of all exactly n."""
    drawn = [masks(length, samples, streams(seed, [])) for seed in range(200)]
    for masked, weights in drawn:
        assert bool(masked.any(1).all())
        assert float((weights[:, None] * masked).sum()) == pytest.approx(length)
    mean = torch.stack([(weights[:, None] * masked).sum(0) for masked, weights in drawn]).mean(0)
    torch.testing.assert_close(mean, torch.ones(length, dtype=torch.float64), atol=0.4, rtol=0)


MODELS = {
    "full": lambda: stock(7, 12, 6),
    "shifted": lambda: stock(7, 12, 6, shift=True),
    "blocks": lambda: stock(7, 12, 6, attention="block", block_size=4),
    "shifted blocks": lambda: stock(7, 12, 6, attention="block", block_size=4, shift=True),
    "diffusion transformer": lambda: mdlm(7, 12),
    "time": lambda: mdlm(7, 12, time_conditioned=True),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_neither_the_batch_nor_the_other_requests_change_a_figure(model):
    model = model()
    pairs = [
        Pair([0, 1, 3], [2, 0, 1, 1, 4]),
        Pair([5], [1, 2, 2]),
        Pair([2, 2], [1]),
        Pair([1, 0, 2], [0, 0, 5, 1, 1]),
    ]
    alone = [values(model, [pair], 6, 3, 1)[0] for pair in pairs]
    assert values(model, pairs, 6, 3, 8) == pytest.approx(alone, abs=2e-5)
    assert values(model, pairs[::-1], 6, 3, 8)[::-1] == pytest.approx(alone, abs=2e-5)
    assert values(model, pairs, 6, 4, 8) != pytest.approx(alone, abs=2e-5)


def test_a_block_is_read_behind_clean_ones():
    """A model of blocks is asked for one block at a time, as it was trained."""
    pair = Pair([0, 1, 3], [2, 0, 1, 1, 4, 5])
    parts = list(in_blocks(pair, 4))
    assert parts == [Pair([0, 1, 3], [2]), Pair([0, 1, 3, 2], [0, 1, 1, 4]), Pair([0, 1, 3, 2, 0, 1, 1, 4], [5])]
    model = MODELS["blocks"]()
    assert values(model, [pair], 15, 0, 4)[0] == pytest.approx(sum(values(model, parts, 15, 0, 4)), abs=1e-5)
    assert [answer.passes for answer in log_likelihoods(model, [pair], 15, 0, 4)] == [1 + 15 + 1]


def test_what_is_written_greedily_is_what_the_rule_writes():
    source = random_source(3, 1, 3.0, 0, 8)
    best = max(([token] for token in range(3)), key=lambda row: conditional(source, Pair([0, 1], row)))
    pairs = [Pair([0, 1], [token]) for token in range(3)]
    assert written_greedily(source, pairs, TopK(), 8, 0, 2) == [token == best[0] for token in range(3)]
    assert [a.greedy for a in log_likelihoods(source, pairs, 4, 0, 2)] == [token == best[0] for token in range(3)]
    rows = [Pair([1], row) for row in itertools.product(range(3), repeat=3)]
    assert sum(written_greedily(source, rows, TopK(), 3, 0, 5)) == 1
    assert sum(a.greedy for a in log_likelihoods(source, rows, 4, 0, 5, "left_to_right")) == 1


def test_a_pair_that_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="have 13 tokens, and the model 12 positions"):
        log_likelihoods(MODELS["full"](), [Pair([0] * 9, [1] * 4)], 2, 0, 1)
