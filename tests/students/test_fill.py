"""Every rule on every kind of canvas: what is given stays, what is open is written, and with the law of enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from students.critic import Discriminator
from students.fill import fill
from students.planner import add_planner
from students.rollout import StateRecorder, k_step
from students.samplers import (
    Ancestral,
    Dilated,
    Edit,
    EntropyBound,
    Factor,
    Planner,
    RandomStart,
    Rgas,
    Sampler,
    Threshold,
    TopK,
)
from students.samplers.timetable import tokens_per_pass
from teachers import chunks
from teachers.canvas import Canvas
from teachers.chunks import row_sums
from teachers.delegating import DelegatingDenoiser
from teachers.errors import UserError
from teachers.oracle.markov import random_source
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, categorical, uniform
from tests.laws import Choice, Law, Seen, Z, deviation, filling_law, mixture
from tests.networks import shape, stock
from tests.tabular import TabularDenoiser

V, MASK, PAD = 4, 3, 0  # padding that looks like a token
REAL = {"left padding": [False, True, True, True, True], "right padding": [True, True, True, True, False]}
CANVASES = {
    "masked": [MASK, MASK, MASK],
    "prompt": [1, 2, MASK, MASK, MASK],
    "suffix": [MASK, MASK, MASK, 0, 1],
    "infilling": [MASK, 1, MASK, MASK, 2],
    "left padding": [PAD, 1, MASK, MASK, MASK],
    "right padding": [MASK, MASK, 1, MASK, PAD],
}
KINDS = pytest.mark.parametrize("kind", CANVASES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def canvas_of(kind: str, rows: int = 1) -> Canvas:
    tokens = torch.tensor(CANVASES[kind]).repeat(rows, 1)
    return Canvas.of(tokens, MASK, torch.tensor(REAL[kind]).repeat(rows, 1) if kind in REAL else None)


def table(canvas: Canvas, seed: int = 0) -> TabularDenoiser:
    return TabularDenoiser(V, canvas.length, seed)


# --- rules as they are defined ---------------------------------------------------------------------------------------


def any_one(seen: Seen) -> Choice:
    return [(1 / len(seen.places), [place]) for place in seen.places]


def ancestral(steps: int) -> Callable[[Seen], Choice]:
    """Each position with the probability 1 / (steps left), of log-linear noise."""

    def choose(seen: Seen) -> Choice:
        reveal = 1 / (steps - seen.number)
        subsets = itertools.product([False, True], repeat=len(seen.places))
        return [
            (math.prod(reveal if s else 1 - reveal for s in subset), list(itertools.compress(seen.places, subset)))
            for subset in subsets
        ]

    return choose


def largest(threshold: float) -> Callable[[Seen], Choice]:
    def choose(seen: Seen) -> Choice:
        confidence = seen.log_probs.amax(1).exp().tolist()
        sure = [place for place, p in zip(seen.places, confidence, strict=True) if p >= threshold]
        return [(1.0, sure or [seen.places[confidence.index(max(confidence))]])]

    return choose


def most_probable(steps: int) -> Callable[[Seen], Choice]:
    def choose(seen: Seen) -> Choice:
        confidence = seen.log_probs[range(len(seen.places)), list(seen.tokens or ())].tolist()
        ranked = sorted(zip(confidence, seen.places, strict=True), reverse=True)
        count = seen.total // steps + (seen.number < seen.total % steps)
        return [(1.0, [place for _, place in ranked[:count]])]

    return choose


def drawn(seen: Seen, temperature: float = 1.0) -> list[float]:
    """Log-probabilities of the drawn tokens under the law at a temperature."""
    law = (seen.log_probs / temperature).log_softmax(1)
    return law[range(len(seen.places)), list(seen.tokens or ())].tolist()


def entropies(seen: Seen, temperature: float = 1.0) -> list[float]:
    p = (seen.log_probs / temperature).softmax(1)
    return torch.distributions.Categorical(p).entropy().tolist()


def certainty(seen: Seen) -> list[float]:
    return [-entropy for entropy in entropies(seen)]


def margins(seen: Seen, temperature: float = 1.0) -> list[float]:
    best = (seen.log_probs / temperature).softmax(1).sort(1, descending=True).values
    return (best[:, 0] - best[:, 1]).tolist()


def highest(score: Callable[[Seen], list[float]], steps: int, timetable="llada") -> Callable[[Seen], Choice]:
    def choose(seen: Seen) -> Choice:
        ranked = sorted(zip(score(seen), seen.places, strict=True), reverse=True)
        count = tokens_per_pass(timetable, seen.total, steps)[seen.number]
        return [(1.0, [place for _, place in ranked[:count]])]

    return choose


def any_so_many(steps: int) -> Callable[[Seen], Choice]:
    def choose(seen: Seen) -> Choice:
        subsets = list(itertools.combinations(seen.places, tokens_per_pass("dllm", seen.total, steps)[seen.number]))
        return [(1 / len(subsets), list(subset)) for subset in subsets]

    return choose


def above(threshold: float, steps: int) -> Callable[[Seen], Choice]:
    """All that are more certain than that, where these are at least as many as an even share, else that share."""

    def choose(seen: Seen) -> Choice:
        confidence = seen.log_probs.amax(1).exp().tolist()
        ranked = sorted(zip(confidence, seen.places, strict=True), reverse=True)
        sure, share = [place for p, place in ranked if p > threshold], tokens_per_pass("llada", seen.total, steps)
        count = share[min(seen.number, len(share) - 1)]
        return [(1.0, sure if len(sure) >= count else [place for _, place in ranked[:count]])]

    return choose


def factor(f: float) -> Callable[[Seen], Choice]:
    def choose(seen: Seen) -> Choice:
        confidence = seen.log_probs.amax(1).exp().tolist()
        ranked = sorted(zip(confidence, seen.places, strict=True), reverse=True)
        fits = [(n + 1) * (1 - p) <= f for n, (p, _) in enumerate(ranked, 1)]
        count = max(1, len(list(itertools.takewhile(bool, fits))))
        return [(1.0, [place for _, place in ranked[:count]])]

    return choose


def entropy_bound(gamma: float) -> Callable[[Seen], Choice]:
    def choose(seen: Seen) -> Choice:
        ranked = sorted(zip(entropies(seen), seen.places, strict=True))
        sums = itertools.accumulate(entropy for entropy, _ in ranked)
        count = sum(total - entropy <= gamma for total, (entropy, _) in zip(sums, ranked, strict=True))
        return [(1.0, [place for _, place in ranked[:count]])]

    return choose


def in_blocks(canvas: Canvas, length: int, choose: Callable[[Seen], Choice]) -> Callable[[Seen], Choice]:
    """From the first open column on."""
    begin = canvas.open[0].tolist().index(True)

    def choose_there(seen: Seen) -> Choice:
        here = [i for i, p in enumerate(seen.places) if (p - begin) // length == (seen.places[0] - begin) // length]
        return choose(replace(seen, places=[seen.places[i] for i in here], log_probs=seen.log_probs[here], number=0))

    return choose_there


def at_block_steps(canvas: Canvas, rule: Callable[[int], Callable[[Seen], Choice]]) -> Callable[[Seen], Choice]:
    """Of a row that is written in two blocks of two tokens, in two passes each, the second of which takes the rest."""
    begin = canvas.open[0].tolist().index(True)

    def choose(seen: Seen) -> Choice:
        block, number = divmod(seen.number, 2)
        here = [i for i, place in enumerate(seen.places) if (place - begin) // 2 == block]
        places = [seen.places[i] for i in here]
        if number == 1 or not places:
            return [(1.0, places)]
        return rule(2)(replace(seen, places=places, log_probs=seen.log_probs[here], number=number))

    return choose


def rate_of_two(canvas: Canvas) -> Callable[[Seen], Choice]:
    """A planner's start: each position at the rate that fills what is open of a block in two passes, but never none."""
    begin = canvas.open[0].tolist().index(True)

    def choose(seen: Seen) -> Choice:
        end = canvas.length if canvas.real is None else max(canvas.real[0].nonzero().squeeze(1).tolist()) + 1
        first = begin + (seen.places[0] - begin) // 2 * 2
        rate = min(1 / (1 + math.exp(-5)), 1 / (2 * len(seen.places) / len(range(first, min(first + 2, end)))))
        subsets = [s for s in itertools.product([False, True], repeat=len(seen.places)) if any(s)]
        chance = [math.prod(rate if chosen else 1 - rate for chosen in subset) for subset in subsets]
        return [
            (p / sum(chance), list(itertools.compress(seen.places, subset)))
            for p, subset in zip(chance, subsets, strict=True)
        ]

    return choose


def van_der_corput(rotation: int, bits: int, begin: int) -> Callable[[Seen], Choice]:
    """Of places in the text, which begins behind so much padding."""

    def choose(seen: Seen) -> Choice:
        keys = [f"{(place - begin + rotation) % 2**bits:0{bits}b}"[::-1] for place in seen.places]
        return [(1.0, [min(zip(keys, seen.places, strict=True))[1]])]

    return choose


def dilated_law(denoiser: TabularDenoiser, canvas: Canvas, temperature: float) -> Law:
    real = [True] * canvas.length if canvas.real is None else canvas.real[0].tolist()
    bits, begin = (sum(real) - 1).bit_length(), real.index(True)
    orders = [van_der_corput(rotation, bits, begin) for rotation in range(2**bits)]
    return mixture([(1 / len(orders), filling_law(denoiser, canvas, 4, order, temperature)) for order in orders])


def random_start_law(denoiser: TabularDenoiser, canvas: Canvas, temperature: float) -> Law:
    """Two ancestral steps from each start: every open position a mask with probability 1/2, else one of the tokens."""
    places, laws = canvas.open[0].nonzero().squeeze(1).tolist(), []
    for start in itertools.product(range(V), repeat=len(places)):
        tokens = canvas.tokens.clone()
        tokens[0, places] = torch.tensor(start)
        weight = math.prod(1 / 2 if token == MASK else 1 / 2 / MASK for token in start)
        begun = Canvas(tokens, canvas.open, canvas.real)
        laws.append((weight, filling_law(denoiser, begun, 2, ancestral(2), temperature)))
    return mixture(laws)


LAWS: dict[str, tuple[Sampler, int, Callable[[TabularDenoiser, Canvas, float], Law]]] = {
    "ancestral, one position a pass": (Ancestral(), 2**20, lambda d, c, t: filling_law(d, c, 4, any_one, t)),
    "ancestral, two steps": (Ancestral(), 2, lambda d, c, t: filling_law(d, c, 2, ancestral(2), t)),
    "dilated": (Dilated(), 4, dilated_law),
    "random start": (RandomStart(random_share=0.5), 2, random_start_law),
    "top-k": (TopK(), 2, lambda d, c, t: filling_law(d, c, 2, most_probable(2), t, looks=True)),
    "threshold": (Threshold(threshold=0.6), 4, lambda d, c, t: filling_law(d, c, 4, largest(0.6), t)),
    "top-k, tempered": (
        TopK(tempered=True),
        2,
        lambda d, c, t: filling_law(d, c, 2, highest(lambda seen: drawn(seen, t), 2), t, looks=True),
    ),
    "top-k, entropy order": (TopK(order="entropy"), 2, lambda d, c, t: filling_law(d, c, 2, highest(certainty, 2), t)),
    "top-k, margin order, tempered": (
        TopK(order="margin", tempered=True),
        2,
        lambda d, c, t: filling_law(d, c, 2, highest(lambda seen: margins(seen, t), 2), t),
    ),
    "top-k, random order": (
        TopK(order="random", timetable="dllm"),
        2,
        lambda d, c, t: filling_law(d, c, 2, any_so_many(2), t),
    ),
    "top-k, from left to right": (
        TopK(order="sequential", timetable="rnd1"),
        2,
        lambda d, c, t: filling_law(d, c, 2, highest(lambda seen: [-place for place in seen.places], 2, "rnd1"), t),
    ),
    "top-k, blocks": (
        TopK(order="entropy", block_length=2),
        4,
        lambda d, c, t: filling_law(d, c, 4, in_blocks(c, 2, lambda s: highest(certainty, s.total)(s)), t),
    ),
    "threshold, at least a share": (
        Threshold(threshold=0.6, strict=True, timetable="llada"),
        2,
        lambda d, c, t: filling_law(d, c, 2, above(0.6, 2), t),
    ),
    "threshold, blocks": (
        Threshold(threshold=0.5, block_length=2),
        4,
        lambda d, c, t: filling_law(d, c, 4, in_blocks(c, 2, largest(0.5)), t),
    ),
    "factor": (Factor(factor=1.5), 4, lambda d, c, t: filling_law(d, c, 4, factor(1.5), t)),
    "entropy bound": (EntropyBound(gamma=0.8), 4, lambda d, c, t: filling_law(d, c, 4, entropy_bound(0.8), t)),
    "ancestral, blocks": (
        Ancestral(block_length=2),
        4,
        lambda d, c, t: filling_law(d, c, 4, at_block_steps(c, ancestral), t),
    ),
    "ancestral, steps of each block": (
        Ancestral(block_length=2, budget="block"),
        2,
        lambda d, c, t: filling_law(d, c, 4, at_block_steps(c, ancestral), t),
    ),
    "planner, blocks": (
        Planner(block_length=2, budget="block"),
        2,
        lambda d, c, t: filling_law(d, c, 4, at_block_steps(c, lambda steps: rate_of_two(c)), t),
    ),
    "planner, one position a pass": (Planner(bias=-50.0), 4, lambda d, c, t: filling_law(d, c, 4, any_one, t)),
}
"""Rule, steps, and its law on a row at a temperature."""


@KINDS
@pytest.mark.parametrize("rule", LAWS)
@torch.no_grad()
def test_the_law_is_that_of_enumeration(rule, kind):
    sampler, steps, law_at = LAWS[rule]
    canvas, rows = canvas_of(kind), canvas_of(kind, 10_000)
    denoiser = table(canvas)
    laws = {temperature: law_at(denoiser, canvas, temperature) for temperature in (1.0, 0.5)}
    for temperature, law in laws.items():
        tempered = sampler.model_copy(update={"temperature": temperature})
        tokens = fill(denoiser, rows, tempered, steps, seeded(1)).tokens
        assert deviation(tokens, law) < Z, temperature
        assert deviation(tokens, laws[1.5 - temperature]) > 2 * Z, "the temperature changes too little for this test"


@KINDS
@pytest.mark.parametrize("order", [1, 2])
@torch.no_grad()
def test_a_position_a_pass_an_exact_denoiser_writes_what_is_open_with_its_law_given_the_rest(order, kind):
    """By the source's own probabilities of whole rows, which know nothing of padding."""
    source, canvas = random_source(V - 1, order, 1.5, 0, 4), canvas_of(kind)
    real = torch.ones_like(canvas.open) if canvas.real is None else canvas.real
    texts = source.all_rows(int(real.sum()))
    given = canvas.tokens[real]
    texts = texts[((texts == given) | (given == MASK)).all(1)]
    law = source.log_likelihood(texts).softmax(0)
    expected = {tuple(text): p for text, p in zip(texts.tolist(), law.tolist(), strict=True)}
    exact: list[tuple[Sampler, int]] = [
        (Ancestral(), 2**20), (Dilated(), 5), (RandomStart(), 2**20), (Planner(bias=-50.0), 5),
        (Threshold(threshold=1.0), 5), (TopK(order="margin"), 5), (TopK(order="random", block_length=2), 6),
        (Factor(factor=1e-6), 5), (EntropyBound(gamma=0.0), 5),
    ]  # fmt: skip
    for sampler, steps in exact:
        filled = fill(source, canvas_of(kind, 5000), sampler, steps, seeded(2))
        assert torch.equal(filled.nfe, torch.full((5000,), int(canvas.open.sum()))), sampler.name
        written = filled.tokens[:, real[0]]
        assert deviation(written, expected) < Z, sampler.name


# --- what holds of every rule ----------------------------------------------------------------------------------------

RULES: list[Sampler] = [
    Ancestral(), Dilated(), RandomStart(random_share=0.5), TopK(), Threshold(threshold=0.6),
    Threshold(threshold=0.6, confidence="drawn"), Planner(), Factor(factor=1.5), EntropyBound(gamma=0.8),
    TopK(order="entropy", timetable="dream"), TopK(order="random", timetable="dllm", tempered=True),
    TopK(block_length=2), Threshold(threshold=0.5, block_length=2, timetable="sdar", strict=True),
    Ancestral(block_length=2), Dilated(block_length=2, budget="block"), Planner(block_length=2),
    RandomStart(random_share=0.5, block_length=2, budget="block"), TopK(order="margin", block_length=2, budget="block"),
    Edit(threshold=0.6, editing_threshold=0.4, block_length=2, budget="block"),
    Edit(threshold=0.6, editing_threshold=0.4),
    Edit(threshold=0.6, editing_threshold=0.4, block_length=2, post_steps=1),
    Rgas(guided=0.5),
]  # fmt: skip
EVERY = pytest.mark.parametrize("sampler", RULES, ids=lambda sampler: sampler.label)
ALONE = pytest.mark.parametrize("sampler", RULES[:-1], ids=lambda sampler: sampler.label)  # without a critic


@pytest.fixture(scope="module")
def critic() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(stock(V, 5, MASK, sizes=shape(initializer_range=0.5)), 1).requires_grad_(False)


def steps_for(sampler: Sampler) -> torch.Tensor:
    """Of the rows of `mixed`, each of which has two blocks of two."""
    if sampler.needs_critic:  # guided rows take the same steps
        return torch.tensor([2] * 5)
    return torch.tensor([2, 2, 3, 4, 7] if in_two_blocks(sampler) else [1, 2, 3, 4, 7])


def in_two_blocks(sampler: Sampler) -> bool:
    """Which share the steps."""
    return sampler.block_length == 2 and sampler.budget == "text"


def mixed() -> Canvas:
    """A row of every kind."""
    rows = [canvas_of(kind) for kind in CANVASES if kind != "masked"]
    real = torch.cat([torch.ones_like(row.open) if row.real is None else row.real for row in rows])
    return Canvas(torch.cat([row.tokens for row in rows]), torch.cat([row.open for row in rows]), real)


@KINDS
@EVERY
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_what_is_given_stays_and_what_is_open_is_written_in_so_many_passes(sampler, steps, kind, critic):
    canvas = canvas_of(kind, 40)
    before, open_ = canvas.tokens.clone(), canvas.open.clone()
    if in_two_blocks(sampler) and steps == 1:
        with pytest.raises(UserError, match="a text has 2 blocks of 2 tokens and each takes a pass"):
            fill(table(canvas), canvas, sampler, steps, seeded(3))
        return
    filled = fill(table(canvas), canvas, sampler, steps, seeded(3), critic=critic)
    assert torch.equal(canvas.tokens, before), "the caller's canvas was written to"
    assert torch.equal(canvas.open, open_), "the caller's canvas was written to"
    assert torch.equal(filled.tokens[~open_], before[~open_])
    assert (filled.tokens[open_] != MASK).all()
    assert not filled.canvas.open.any()
    assert (filled.nfe >= 1).all()
    most = 2 * steps if sampler.budget == "block" else steps
    most = most if sampler.needs_critic or sampler.edits else min(most, int(open_[0].sum()))
    assert (filled.nfe <= most).all()
    assert filled.query_tokens == int(filled.nfe.sum()) * canvas.length


@EVERY
def test_a_rows_text_does_not_depend_on_the_rest_of_the_batch(sampler, critic):
    canvas = mixed()
    denoiser = table(canvas)
    steps = steps_for(sampler)
    together = fill(denoiser, canvas, sampler, steps, RowStreams(0, (5,), range(5)), critic=critic)
    for row in range(5):
        part = slice(row, row + 1)
        alone = fill(denoiser, canvas.rows(part), sampler, steps[part], RowStreams(0, (5,), [row]), critic=critic)
        assert torch.equal(alone.tokens, together.tokens[part])
        assert torch.equal(alone.nfe, together.nfe[part])
        if together.log_prob is not None:
            torch.testing.assert_close(alone.log_prob, together.log_prob[part])


@ALONE
def test_a_row_leaves_its_stream_where_it_would_be_alone(sampler):
    """What is drawn after a filling must not depend on the rest of the batch either."""
    canvas, steps = mixed(), steps_for(sampler)
    streams = RowStreams(0, (5,), range(5))
    fill(table(canvas), canvas, sampler, steps, streams)
    after = uniform(streams, 5, 2)
    for row in range(5):
        stream, part = RowStreams(0, (5,), [row]), slice(row, row + 1)
        fill(table(canvas), canvas.rows(part), sampler, steps[part], stream)
        assert torch.equal(uniform(stream, 1, 2), after[part])


@ALONE
def test_the_record_is_the_way_from_the_canvas_to_the_text(sampler):
    canvas, passes = mixed(), []
    denoiser = table(canvas)
    filled = fill(denoiser, canvas, sampler, 4, seeded(4), record=passes.append)
    tokens, open_ = canvas.tokens.clone(), canvas.open.clone()
    if sampler.name == "random_start":
        tokens[open_] = passes[0].before.tokens[open_]
    nfe, log_prob = torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.float64)
    for number, one in enumerate(passes):
        rows = one.asked.rows
        assert one.number == number
        assert torch.equal(one.before.tokens, tokens[rows])
        assert torch.equal(one.before.open, open_[rows])
        assert torch.equal(one.before.real, canvas.real[rows])
        assert not (one.commit & ~one.asked.positions).any()
        if not sampler.edits:
            assert not (one.asked.positions & ~one.before.open).any()
            assert one.commit.any(1).all(), "a pass that commits nothing"
        torch.testing.assert_close(one.features, denoiser.features(one.before, one.asked.positions))
        log_probs = denoiser.head(one.features).gather(1, one.drawn.tokens[:, None]).squeeze(1)
        torch.testing.assert_close(one.drawn.log_prob, log_probs)
        tokens[rows] = one.after()
        open_[rows] &= ~one.commit
        nfe[rows] += 1
        log_prob[rows] += row_sums(log_probs[one.commit[one.asked.positions]], one.commit)
    assert torch.equal(filled.tokens, tokens)
    assert torch.equal(filled.nfe, nfe)
    assert (filled.log_prob is None) == (not sampler.blind)
    if sampler.blind:
        torch.testing.assert_close(filled.log_prob, log_prob)


@ALONE
def test_greedy_takes_the_most_probable_token_whatever_the_temperature(sampler):
    canvas, passes = mixed(), []
    denoiser = table(canvas)
    greedy = sampler.model_copy(update={"draw": "greedy", "temperature": 2.0})
    filled = fill(denoiser, canvas, greedy, 3, seeded(5), record=passes.append)
    assert filled.log_prob is None
    for one in passes:
        assert torch.equal(one.drawn.tokens, denoiser.head(one.features).argmax(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@ALONE
def test_confidence_is_the_denoisers_own_at_every_temperature(sampler, temperature):
    canvas, passes = mixed(), []
    denoiser = table(canvas)
    tempered = sampler.model_copy(update={"temperature": temperature})
    fill(denoiser, canvas, tempered, 3, seeded(5), record=passes.append)
    for one in passes:
        own = denoiser.head(one.features)
        drawn = one.drawn.tokens[:, None]
        torch.testing.assert_close(one.drawn.confidence, own.gather(1, drawn).squeeze(1))
        law = (own / temperature).log_softmax(1)
        torch.testing.assert_close(one.drawn.log_prob, law.gather(1, drawn).squeeze(1))


@ALONE
def test_until_ends_early_where_the_whole_way_passes(sampler):
    canvas, steps = mixed(), 5
    denoiser, recorder = table(canvas), StateRecorder(canvas, sampler.most_transitions(canvas.length, steps))
    fill(denoiser, canvas, sampler, steps, RowStreams(1, (0,), range(5)), record=recorder)
    until = torch.tensor([0, 1, 2, 3, recorder.states.shape[1]])
    ended = fill(denoiser, canvas, sampler, steps, RowStreams(1, (0,), range(5)), until=until)
    states = torch.cat([recorder.states, recorder.states[:, -1:]], 1)
    for row in range(5):
        passes = int(ended.nfe[row])
        assert passes <= until[row]
        assert torch.equal(ended.tokens[row], states[row, passes]) or passes == recorder.states.shape[1]
        assert torch.equal(ended.canvas.open[row], canvas.open[row] & ~recorder.commits[row, :passes].any(0))
    assert not ended.canvas.open[4].any()


@ALONE
def test_given_tokens_are_written_in_the_rules_order(sampler):
    canvas = mixed()
    denoiser, passes = table(canvas), []
    given = torch.randint(0, MASK, canvas.tokens.shape, generator=seeded(6))
    filled = fill(denoiser, canvas, sampler, 2, seeded(7), given=given, record=passes.append)
    assert torch.equal(filled.tokens, torch.where(canvas.open, given, canvas.tokens))
    expected = torch.zeros(5, dtype=torch.float64)
    for one in passes:
        nats = denoiser.log_probs(one.before).gather(2, given[one.asked.rows][..., None]).squeeze(2)
        expected[one.asked.rows] += torch.where(one.commit, nats, 0).sum(1)
    torch.testing.assert_close(filled.log_prob, expected)


@ALONE
def test_a_positions_uniform_serves_whatever_pass_commits_it(sampler):
    canvas = mixed()
    denoiser, passes = table(canvas), []
    uniforms = torch.rand(canvas.tokens.shape, generator=seeded(8), dtype=torch.float64)
    fill(denoiser, canvas, sampler, 3, seeded(9), uniforms=uniforms, record=passes.append)
    for one in passes:
        expected = categorical(denoiser.head(one.features), uniforms[one.asked.rows][one.asked.positions])
        assert torch.equal(one.drawn.tokens, expected)


class Clocked(TabularDenoiser):
    """Remembers the times it read."""

    def features(self, canvas, select=None):
        self.times = [*getattr(self, "times", []), (canvas, self.time(canvas))]
        return super().features(canvas, select)


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
@pytest.mark.parametrize("sampler", [Ancestral(), Dilated()], ids=lambda sampler: sampler.name)
def test_a_block_that_is_the_whole_text_is_written_as_without_blocks(sampler, schedule):
    canvas, process = mixed(), MaskedProcess(schedule)
    whole, one_block = Clocked(V, canvas.length, 0), Clocked(V, canvas.length, 0)
    expected = fill(whole, canvas, sampler, 3, seeded(1), process=process)
    for budget in ("text", "block"):
        rule = sampler.model_copy(update={"block_length": canvas.length, "budget": budget})
        filled = fill(one_block, canvas, rule, 3, seeded(1), process=process)
        assert torch.equal(filled.tokens, expected.tokens)
        assert torch.equal(filled.nfe, expected.nfe)
        for (_, time), (_, other) in zip(whole.times, one_block.times, strict=False):
            torch.testing.assert_close(time, other)


@pytest.mark.parametrize("attention", ["full", "block"])
def test_a_transition_within_a_block_is_at_the_time_of_the_text_or_of_the_block_where_attention_ends(attention):
    canvas = Canvas.blank(1, 4, MASK)
    denoiser, seen = Clocked(V, 4, 0), []
    denoiser.spec = replace(denoiser.spec, attention=attention, block_size=2 if attention == "block" else None)
    fill(denoiser, canvas, Dilated(block_length=2, budget="block"), 2, seeded(0))
    for canvas_read, time in denoiser.times:
        seen.append((int(canvas_read.open.sum()), float(time)))
    assert seen == [(4, 1.0), (3, 0.75 if attention == "full" else 0.5), (2, 0.5 if attention == "full" else 1.0),
                    (1, 0.25 if attention == "full" else 0.5)]  # fmt: skip


def test_a_planner_sees_a_block_as_if_there_were_nothing_else():
    torch.manual_seed(0)
    network = stock(V, 8, MASK, attention="block", block_size=4, sizes=shape(initializer_range=0.5))
    planned = add_planner(network, base_steps=2).requires_grad_(False)
    for parameter in planned.planner.parameters():
        parameter.normal_(generator=seeded(1))
    seen: list[torch.Tensor] = []
    planned.planner.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    tokens = torch.tensor([[0, 1, 2, 0, 1, MASK, MASK, MASK]])
    fill(planned, Canvas.of(tokens, MASK), Planner(block_length=4), 2, seeded(2))
    fill(planned, Canvas.of(tokens[:, 4:], MASK), Planner(), 2, seeded(2))
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
@pytest.mark.parametrize("sampler", [TopK(), Threshold(threshold=0.6), Planner()], ids=lambda sampler: sampler.name)
def test_rules_that_decide_pass_by_pass_are_at_the_time_of_what_is_open_and_no_padding(sampler, schedule):
    canvas, process = mixed(), MaskedProcess(schedule)
    denoiser = Clocked(V, canvas.length, 0)
    fill(denoiser, canvas, sampler, 3, seeded(1), process=process)
    for seen, time in denoiser.times:
        share = seen.open.double().sum(1) / seen.real.sum(1)
        torch.testing.assert_close(time, process.time_of(1 - share).float())


# --- training rollouts go through the same states ---------------------------------------------------------------------


@ALONE
def test_k_step_records_states_that_fill_goes_through(sampler):
    canvas, streams = mixed(), lambda: RowStreams(3, (1,), range(5))
    denoiser, budgets = table(canvas), [2, 4]
    trajectory = k_step(denoiser, MaskedProcess(), canvas, sampler, budgets, streams())
    # the same way, to its end
    replay = streams()
    steps = torch.tensor(budgets)[(uniform(replay, 5, 2)[:, 0] * 2).long()]
    recorder = StateRecorder(canvas, sampler.most_transitions(canvas.length, max(budgets)))
    filled = fill(denoiser, canvas, sampler, steps, replay, passes=max(budgets), record=recorder)
    for row in range(5):
        passes = int(filled.nfe[row])
        states, commits = [*recorder.states[row, :passes], filled.tokens[row]], recorder.commits[row, :passes]
        opens = [canvas.open[row] & ~commits[:number].any(0) for number in range(passes + 1)]
        state, open_ = trajectory.states[row, 0], trajectory.revealed[row, 0]
        assert any(torch.equal(s, state) and torch.equal(o, open_) for s, o in zip(states, opens, strict=True))
    revealed = trajectory.revealed[:, 0]
    assert torch.equal(trajectory.sample[~revealed], trajectory.states[:, 0][~revealed])
    assert torch.equal(trajectory.sample[~canvas.open], canvas.tokens[~canvas.open])
    assert (trajectory.sample[canvas.open] != MASK).all()


# --- passes that processes make together ------------------------------------------------------------------------------


class Together(DelegatingDenoiser):
    """Counts what is collective under ZeRO 3: passes, calls of the head and of the planner."""

    collective = True

    def __init__(self, inner):
        super().__init__(inner)
        self.calls = []

    def features(self, canvas, select=None):
        assert len(canvas) > 0
        self.calls.append("pass")
        return super().features(canvas, select)

    def head(self, features):
        self.calls.append("head")
        return super().head(features)

    def commit_logits(self, features, summaries, where):
        self.calls.append("planner")
        return super().commit_logits(features, summaries, where)


@pytest.mark.parametrize("logits_at_once", [2**26, 5])
@ALONE
def test_collective_denoisers_are_called_alike_whatever_the_rows(sampler, logits_at_once, monkeypatch):
    """And the additional calls change no text and draw no random number."""
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", logits_at_once)
    canvas = mixed()
    torch.manual_seed(0)
    planned = add_planner(table(canvas), 2, width=4).double()
    together, alone, nothing = Together(planned), planned, canvas.tokens.clone()
    nothing[canvas.open] = 1
    calls, budgets = [], [2, 4]
    for row in range(5):
        for rows in (canvas.rows(slice(row, row + 1)), Canvas.of(nothing[row : row + 1], MASK)):
            for seed in range(3):
                texts = []
                for denoiser in (together, alone):
                    streams = RowStreams(seed, (2,), [row])
                    moved = k_step(denoiser, MaskedProcess(), rows, sampler, budgets, streams)
                    texts.append((moved.states, moved.sample, uniform(streams, 1, 2)))
                assert all(torch.equal(one, other) for one, other in zip(*texts, strict=True))
                calls.append(tuple(together.calls))
                together.calls.clear()
    assert len(set(calls)) == 1
    most = max(budgets) if sampler.adaptive or sampler.budget == "block" else max(budgets) - 1
    if sampler.budget == "block":  # there may be three blocks, and five tokens
        most = 3 * most if sampler.edits else 5
    assert calls[0].count("pass") == most + 1
