"""ReMDM's transitions by enumeration on a denoiser that is a table: formulas, marginals, grids and passes."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from pydantic import ValidationError

from students.fill import fill
from students.rollout import k_step
from students.samplers import PRESETS, Ancestral, Remdm
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform
from tests.laws import Z, deviation
from tests.tabular import TabularDenoiser

MASK, LENGTH = 2, 3  # two tokens
STRATEGIES = ("cap", "rescale", "confidence", "loop")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alpha_loop(time, phase, rule):
    if phase > rule.on:
        return (1 - time) * rule.written / (1 - rule.on)
    return 1 - time * (1 - rule.written) / rule.off if phase <= rule.off else rule.written


def chances(rule: Remdm, number: int, steps: int):
    """α(t), α(s) and σ before weights, as the paper and its code have them, of log-linear noise."""
    t, s = 1 - number / steps, 1 - (number + 1) / steps
    before, after = 1 - t, 1 - s
    if rule.strategy == "loop":
        before, after = alpha_loop(t, t, rule), alpha_loop(s, t, rule)
    after = 1.0 if number == steps - 1 else min(1.0, after)
    largest = min(1.0, (1 - after) / before) if before > 0 else 1.0
    if rule.strategy == "cap":
        return before, after, min(rule.strength, largest)
    if rule.strategy == "loop":
        return before, after, min(rule.strength, largest) if rule.off < t <= rule.on else 0.0
    return before, after, rule.strength * largest


def enumerated(denoiser, rule: Remdm, steps: int):
    """Every state after every transition: ((token, ψ) a position) → probability."""
    states, history = {((MASK, math.inf),) * LENGTH: 1.0}, []
    for number in range(steps):
        before, after, sigma = chances(rule, number, steps)
        new: dict[tuple, float] = defaultdict(float)
        for state, mass in states.items():
            tokens = torch.tensor([[token for token, _ in state]])
            p = denoiser.log_probs(Canvas.of(tokens, MASK))[0].detach().exp().tolist()
            weights = [math.exp(-psi) for _, psi in state]
            total = sum(weights)
            options = []
            for place, (token, psi) in enumerate(state):
                share = (weights[place] / total if total else 0.0) if rule.strategy == "confidence" else 1.0
                if token != MASK:
                    options.append([((token, psi), 1 - share * sigma), ((MASK, math.inf), share * sigma)])
                    continue
                s = 0.0 if rule.strategy == "confidence" else sigma
                reveal = (after - (1 - s) * before) / (1 - before)
                options.append(
                    [((MASK, math.inf), 1 - reveal), *(((v, p[place][v]), reveal * p[place][v]) for v in range(MASK))]
                )
            for choice in itertools.product(*options):
                probability = mass * math.prod(chance for _, chance in choice)
                if probability > 0:
                    new[tuple(what for what, _ in choice)] += probability
        states = dict(new)
        history.append(states)
    return history


def tokens_law(states):
    law: dict[tuple[int, ...], float] = defaultdict(float)
    for state, mass in states.items():
        law[tuple(token for token, _ in state)] += mass
    return dict(law)


RULES = [
    Remdm(strategy="cap", eta=0.3), Remdm(strategy="rescale", eta=0.6), Remdm(strategy="confidence", eta=1.0),
    Remdm(strategy="loop", eta=0.4, on=0.7, off=0.3, written=0.6),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.strategy)
def test_every_transition_has_the_law_of_the_formula(rule):
    denoiser, steps = TabularDenoiser(MASK + 1, LENGTH, 0).requires_grad_(False), 4
    history = enumerated(denoiser, rule, steps)
    canvas = Canvas.blank(10_000, LENGTH, MASK)
    for made in range(1, steps + 1):
        until = torch.full((len(canvas),), made)
        filled = fill(denoiser, canvas, rule, steps, seeded(made), until=until)
        assert deviation(filled.tokens, tokens_law(history[made - 1])) < Z, made
        assert torch.equal(filled.canvas.open, filled.tokens == MASK)
    plain = fill(denoiser, Canvas.blank(40_000, LENGTH, MASK), Ancestral(), steps, seeded(9)).tokens
    assert deviation(plain, tokens_law(history[-1])) > 2 * Z, "remasking changes too little for this test"


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: rule.strategy)
def test_as_much_is_written_at_every_time_as_in_ancestral_sampling(rule, schedule):
    process, steps = MaskedProcess(schedule), 5
    canvas = Canvas.blank(20_000, LENGTH, MASK)
    denoiser = TabularDenoiser(MASK + 1, LENGTH, 0).requires_grad_(False)
    for made in range(1, steps):
        until = torch.full((len(canvas),), made)
        open_ = fill(denoiser, canvas, rule, steps, seeded(made), process=process, until=until).canvas.open
        expected = 1 - float(process.alpha(torch.tensor(1 - made / steps, dtype=torch.float64)))
        assert abs(float(open_.double().mean()) - expected) < 4 * (0.25 / open_.numel()) ** 0.5


def test_without_remasking_it_is_ancestral_sampling():
    denoiser, canvas = TabularDenoiser(MASK + 1, LENGTH, 1).requires_grad_(False), Canvas.blank(20_000, LENGTH, MASK)
    plain = enumerated(denoiser, Remdm(strategy="cap", eta=0.0), 2)[-1]
    for rule in (Remdm(strategy="cap", eta=0.0), Remdm(strategy="rescale", eta=0.0), Ancestral()):
        filled = fill(denoiser, canvas, rule, 2, seeded(3))
        assert deviation(filled.tokens, tokens_law(plain)) < Z
    assert float(filled.nfe.double().mean()) < 2, "a transition that writes nothing is no pass"


def test_the_loop_stands_still_between_its_times():
    """Of 20 transitions: 9 until t_on = 0.55, 10 that remask, and one from t_off = 0.05 on."""
    rule, canvas = Remdm(strategy="loop", eta=0.1), Canvas.blank(4000, 4, MASK)
    denoiser, shares = TabularDenoiser(MASK + 1, 4, 0).requires_grad_(False), []
    for made in (3, 9, 12, 19, 20):
        until = torch.full((len(canvas),), made)
        shares.append(
            1 - float(fill(denoiser, canvas, rule, 20, seeded(made), until=until).canvas.open.double().mean())
        )
    expected = [3 / 20 * 0.9 / 0.45, 0.9, 0.9, 0.9, 1.0]
    for share, want in zip(shares, expected, strict=True):
        assert abs(share - want) < 4 * (want * (1 - want) / 16_000) ** 0.5 + 1e-12, (shares, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_what_is_given_is_never_reopened_and_nothing_is_left_open(strategy, steps):
    tokens = torch.tensor([[0, 1, MASK, MASK, MASK, 1], [MASK, MASK, 0, MASK, MASK, MASK]]).repeat(50, 1)
    canvas = Canvas.of(tokens, MASK, torch.tensor([[True] * 6, [True] * 5 + [False]]).repeat(50, 1))
    rule = Remdm(strategy=strategy, eta=0.5)
    filled = fill(TabularDenoiser(MASK + 1, 6, 0).requires_grad_(False), canvas, rule, steps, seeded(steps))
    assert torch.equal(filled.tokens[~canvas.open], tokens[~canvas.open])
    assert (filled.tokens[canvas.open] != MASK).all()
    assert not filled.canvas.open.any()
    assert filled.log_prob is None
    assert (filled.nfe >= 1).all()
    assert (filled.nfe <= steps).all()
    if steps == 30:
        assert (filled.nfe > 5).any(), "a text may take more passes than it has tokens"


def test_a_pass_after_the_transitions_takes_what_is_left_greedily():
    """The released code's times end at 1e-5; here they end where half of the text is masked."""
    denoiser, canvas = TabularDenoiser(MASK + 1, LENGTH, 0).requires_grad_(False), Canvas.blank(500, LENGTH, MASK)
    passes = []
    filled = fill(denoiser, canvas, Remdm(strategy="cap", eta=0.0, end=0.5), 2, seeded(0), record=passes.append)
    assert [one.number for one in passes] == [0, 1, 2]
    assert int(filled.nfe.max()) == 3
    last = passes[-1]
    assert torch.equal(last.commit, last.before.open)
    assert torch.equal(last.drawn.tokens, denoiser.head(last.features).argmax(1))
    assert abs(float(last.before.open.double().sum()) / canvas.tokens.numel() - 0.5) < 0.06
    assert not filled.canvas.open.any()
    released = fill(denoiser, canvas, PRESETS["remdm-cap"], 2, seeded(0))
    assert int(released.nfe.max()) == 2, "nothing is left at 1e-5, and a pass that writes nothing is not made"


@pytest.mark.parametrize("budget", ["text", "block"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_blocks_only_the_block_that_is_written_is_reopened(strategy, budget):
    denoiser, canvas, passes = TabularDenoiser(MASK + 1, 6, 0), Canvas.blank(300, 6, MASK), []
    rule = Remdm(strategy=strategy, eta=0.5, block_length=2, budget=budget, end=0.1)
    steps = 12 if budget == "text" else 4
    filled = fill(denoiser.requires_grad_(False), canvas, rule, steps, seeded(0), record=passes.append)
    assert not filled.canvas.open.any()
    assert int(filled.nfe.max()) <= 15
    for one in passes:
        block = one.number // 5
        assert not one.before.open[:, : 2 * block].any(), "blocks before it are written"
        assert one.before.open[:, 2 * block + 2 :].all(), "blocks behind it are not"


@pytest.mark.parametrize("rule", [*RULES, Remdm(eta=0.5, block_length=2, end=0.2)], ids=lambda rule: rule.label)
def test_a_rows_text_does_not_depend_on_the_rest_of_the_batch(rule):
    tokens = torch.tensor([[0, MASK, MASK, MASK], [MASK] * 4, [1, 0, MASK, MASK]])
    canvas, denoiser = Canvas.of(tokens, MASK), TabularDenoiser(MASK + 1, 4, 0).requires_grad_(False)
    streams, steps = RowStreams(0, (5,), range(3)), torch.tensor([3, 9, 4])
    together = fill(denoiser, canvas, rule, steps, streams)
    after = uniform(streams, 3, 2)
    for row in range(3):
        part, stream = slice(row, row + 1), RowStreams(0, (5,), [row])
        alone = fill(denoiser, canvas.rows(part), rule, steps[part], stream)
        assert torch.equal(alone.tokens, together.tokens[part])
        assert torch.equal(alone.nfe, together.nfe[part])
        assert torch.equal(uniform(stream, 1, 2), after[part])


def test_rollouts_record_its_states():
    denoiser, canvas = TabularDenoiser(MASK + 1, LENGTH, 0).requires_grad_(False), Canvas.blank(4000, LENGTH, MASK)
    rule = Remdm(strategy="rescale", eta=0.6)
    out = k_step(denoiser, MaskedProcess(), canvas, rule, [4], RowStreams(0, (1,), range(4000)))
    assert torch.equal(out.states[:, 0] == MASK, out.revealed[:, 0])
    assert (out.sample != MASK).all()
    history = enumerated(denoiser, rule, 4)
    for made in (1, 2, 3):
        rows = (out.time - (1 - made / 4)).abs() < 1e-9
        assert deviation(out.states[rows, 0], tokens_law(history[made - 1])) < Z


def test_strengths_are_the_published_ones():
    found = {name: PRESETS[f"remdm-{name}"].strength for name in ("cap", "rescale", "conf", "loop")}
    assert found == {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}
    assert PRESETS["remdm-loop"].label == "remdm loop 0.02, top-p 0.9"
    with pytest.raises(ValidationError):
        Remdm(strategy="capped")
