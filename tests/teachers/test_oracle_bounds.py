"""The bounds against enumeration, against optimisation of tabular students, and against students that exist."""

import itertools
import math

import pytest
import torch

from students.bound import least_divergence
from students.fill import fill
from students.samplers import Ancestral
from students.samplers.dilated import Dilated
from students.samplers.law import ancestral_log_prob
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.oracle.bounds import best_bounds, bounds
from teachers.oracle.bounds.brackets import _one_value, skeletons
from teachers.oracle.bounds.pair import least_pair_nats, least_table_nats
from teachers.oracle.bounds.templates import TemplateBounds, compositions
from teachers.oracle.making import random_oracle
from tests.tabular import TabularDenoiser

SMALL = {
    "copies": {"tokens": 3, "length": 4, "noise": 0.05},
    "brackets": {"kinds": 2, "depth": 2, "length": 4, "noise": 0.05, "stray": 1e-6},
    "templates": {"tokens": 3, "length": 4, "noise": 0.1},
}
KINDS = pytest.mark.parametrize("kind", list(SMALL))
SCHEDULES = [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def best_student(denoiser, schedule, starts=6, rounds=60):
    """KL of the best student of this schedule that tables can be: a law of each position for each canvas before it.

    Each law is the best given all the others, in turn, the last pass first, from random starts.
    """
    rows, tokens = denoiser.all_rows(4), denoiser.tokens
    log_p = denoiser.log_likelihood(rows)
    places = []  # (position, (N,) which canvas each row has before its pass, how many there are)
    for position in sorted(range(4), key=lambda place: -schedule[place]):
        before = [other for other in range(4) if schedule[other] < schedule[position]]
        canvas = sum((rows[:, o] * tokens**n for n, o in enumerate(before)), torch.zeros(len(rows)).long())
        places.append((position, canvas, tokens ** len(before)))
    least = math.inf
    for seed in range(starts):
        draw = torch.rand(4, tokens**3, tokens, generator=generator(seed)).double()
        laws = [(6 * draw[n, :many]).softmax(-1) for n, (_, _, many) in enumerate(places)]

        def log_of(n, laws=laws):
            position, canvas, _ = places[n]
            return laws[n][canvas, rows[:, position]].clamp(min=1e-300).log()

        for _ in range(rounds):
            for n, (position, canvas, many) in enumerate(places):
                others = sum(log_of(other) for other in range(4) if other != n)
                # the law ∝ exp of the mean of log p − log q of the others, over what the others write
                weight, gain = others.exp(), log_p - others
                at = canvas * tokens + rows[:, position]
                mass = torch.zeros(many * tokens).double().index_add_(0, at, weight)
                mean = torch.zeros(many * tokens).double().index_add_(0, at, weight * gain)
                laws[n] = (mean / mass.clamp(min=1e-300)).view(many, tokens).softmax(-1)
        log_q = sum(log_of(n) for n in range(4))
        least = min(least, float((log_q.exp() * (log_q - log_p)).sum()))
    return least


@KINDS
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_best_table_lies_between_the_bounds(kind, schedule):
    denoiser = random_oracle(kind, 0, SMALL[kind])
    lower, reached = (float(value) for value in bounds(denoiser.source, torch.tensor([schedule])))
    best = best_student(denoiser, schedule)
    assert lower - 1e-5 <= best
    assert best <= reached + 1e-5, "the student that is said to reach it is a table, too"
    assert lower <= reached
    if max(schedule) == 3:
        assert reached == 0
    elif max(schedule) == 0:
        assert lower > 0.5
    if kind == "copies":
        assert best == pytest.approx(reached, abs=1e-4), "exact"
    if kind == "brackets" and max(schedule) == 0:
        assert best == pytest.approx(lower, abs=1e-3), "exact but for the rows without balance"


@pytest.mark.parametrize(("same", "symbols"), [(0.24, 4), (0.15, 4), (0.4, 2), (0.26, 2)])
def test_a_pair_of_symbols_against_a_search(same, symbols):
    other = (1 - symbols * same) / (symbols * (symbols - 1))
    table = torch.full((symbols, symbols), other).double().fill_diagonal_(same)
    laws = torch.distributions.Dirichlet(torch.full((symbols,), 0.4).double()).sample((2000,))
    laws = torch.cat(
        [laws, torch.eye(symbols).double() * 0.9999 + 1e-4 / symbols, torch.full((1, symbols), 1 / symbols)]
    )
    best = (laws @ table.log()).softmax(-1)  # the best partner of each
    nats = (laws * laws.log()).sum(1) + (best * best.log()).sum(1) - ((laws @ table.log()) * best).sum(1)
    found, least = float(nats.min()), least_pair_nats(symbols, same, other)
    assert least - 1e-6 <= found <= least + 0.02
    if symbols == 2:
        assert float(least_table_nats(table)) == pytest.approx(least, abs=1e-5)


def test_copies_cost_nothing_where_the_halves_are_apart_and_the_dilated_order_never_parts_them():
    source = random_oracle("copies", 0, {"tokens": 8, "length": 16, "noise": 0.01}).source
    at_once = float(best_bounds(source, 1).reached)
    assert float(best_bounds(source, 2).reached) == 0
    assert at_once == pytest.approx(8 * (math.log(8) - math.log(1 - 0.01 + 0.01 / 8)), rel=0.01), "nearly one token"
    random = least_divergence(source, Ancestral(), 2, 2000, generator())
    assert random.lower == random.reached == pytest.approx(at_once / 2 / 16, abs=4 * random.lower_error)
    for steps in (2, 4, 8):
        assert least_divergence(source, Dilated(), steps, 16, generator()).lower == pytest.approx(at_once / 16)
    assert least_divergence(source, Dilated(), 16, 16, generator()).lower == 0


def test_who_guesses_a_template_is_right_as_often_as_enumeration_says():
    of = TemplateBounds(random_oracle("templates", 0, SMALL["templates"]).source)
    for size in (1, 2, 3, 5):
        right = 0.0
        for row in itertools.product(range(3), repeat=size):
            counts = [row.count(token) for token in range(3)]
            chance = math.prod(0.9 * (token == 0) + 0.1 / 3 for token in row)
            right += chance * (counts[0] == max(counts)) / counts.count(max(counts))
        assert of.right(size) == pytest.approx(right, abs=1e-12)
    assert compositions(4, 2) == [(1, 3), (2, 2), (3, 1)]


def test_templates_are_best_begun_with_single_tokens():
    source = random_oracle("templates", 0, {"tokens": 8, "length": 10, "noise": 0.1}).source
    one, two, four = (best_bounds(source, passes) for passes in (1, 2, 4))
    assert float(one.lower) == pytest.approx(math.log(8), abs=0.02)
    assert float(two.lower) == pytest.approx(float(two.reached), abs=0.01)
    # the template of the first token is right but for the noise, -log of (1 − ε + ε/T) or so
    assert float(two.reached) == pytest.approx(-math.log(1 - 0.1 + 0.1 / 8), abs=1e-3)
    assert float(four.lower) < float(four.reached) < float(two.lower)


def test_a_row_of_sixteen_brackets_in_one_pass_is_one_skeleton_and_pairs():
    source = random_oracle("brackets", 0, {"kinds": 2, "depth": 4, "length": 16, "noise": 0.01, "stray": 1e-9}).source
    exact = math.log(source.skeletons) + 8 * least_pair_nats(2, float(source.match[0, 0]), float(source.match[0, 1]))
    result = best_bounds(source, 1)
    assert float(result.reached) == pytest.approx(exact, abs=1e-6)
    assert exact - 1e-3 < float(result.lower) <= exact
    assert best_bounds(source, 2) is None
    words, pairs = skeletons(4, 2)
    assert words == [[True, True, False, False], [True, False, True, False]]
    assert pairs == [[(1, 2), (0, 3)], [(0, 1), (2, 3)]]


def test_the_chance_that_bits_have_one_sum_is_below_its_bound():
    share, chance = _one_value(6)
    for value in (0.1, 0.3, 0.5):
        at = int((share - value).abs().argmin())
        law = [math.comb(6, k) * float(share[at]) ** k * (1 - float(share[at])) ** (6 - k) for k in range(7)]
        assert max(law) <= float(chance[at]) + 1e-9
    assert float(chance[-1]) == pytest.approx(math.comb(6, 3) / 2**6, abs=1e-9), "equality for fair bits"


@KINDS
@pytest.mark.parametrize("sampler", [Ancestral(), Dilated()], ids=lambda sampler: sampler.name)
def test_no_student_goes_below(kind, sampler):
    """Neither the source itself in few passes nor a table; what is measured is the mean over the same schedules."""
    denoiser = random_oracle(kind, 0, SMALL[kind])
    table = TabularDenoiser(denoiser.tokens + 1, 4, 0, 6.0)
    for steps in (1, 2):
        bound = least_divergence(denoiser.source, sampler, steps, 64, generator())
        for student in (denoiser, table):
            blank = Canvas.blank(4000, 4, denoiser.spec.mask_id)
            out = fill(student, blank, sampler, steps, generator(steps))
            mean, error = denoiser.kl_bound(out.tokens, out.log_prob)
            assert mean + 4 * error + 1e-6 > bound.lower - 4 * bound.lower_error, "but for float32"
            assert bound.lower <= bound.reached + 1e-9


def test_the_mean_over_schedules_is_what_an_evaluation_estimates():
    denoiser = random_oracle("copies", 0, SMALL["copies"])
    rows, exact = denoiser.all_rows(4), 0.0
    for pattern in itertools.product(range(2), repeat=4):  # E_c min KL, over all 2⁴ schedules of ancestral sampling
        exact += float(bounds(denoiser.source, torch.tensor([pattern])).lower) / 16
        log_q = ancestral_log_prob(denoiser, rows, torch.tensor(pattern).expand_as(rows), 2)
        teacher = float((log_q.exp() * (log_q - denoiser.log_likelihood(rows))).sum())
        assert teacher >= float(bounds(denoiser.source, torch.tensor([pattern])).lower) - 1e-6
    bound = least_divergence(denoiser.source, Ancestral(), 2, 4000, generator())
    assert bound.lower == pytest.approx(exact / 4, abs=4 * bound.lower_error)


def test_a_source_without_bounds_and_a_wrong_length_are_refused():
    markov = random_oracle("markov", 0, {"tokens": 3, "order": 1, "sharpness": 1.0, "length": 4})
    with pytest.raises(UserError, match="no bound for a source of kind markov"):
        bounds(markov.source, torch.zeros(1, 4).long())
    copies = random_oracle("copies", 0, SMALL["copies"])
    with pytest.raises(UserError, match="rows have 6 tokens"):
        bounds(copies.source, torch.zeros(1, 6).long())
