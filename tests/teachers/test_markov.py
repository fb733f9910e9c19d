"""The exact source against enumeration of everything it could write."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from students.fill import fill
from students.samplers import SAMPLERS, Ancestral
from students.samplers.ancestral import reveal_transitions
from students.samplers.law import ancestral_law, ancestral_log_prob
from students.student import cast, frozen
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.markov import LOWEST, Markov, estimate_source, random_source
from teachers.process import MaskedProcess
from tests.tabular import TabularDenoiser, all_patterns

T, L = 3, 4
ORDERS = pytest.mark.parametrize("order", [1, 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(source, rows):
    """Probabilities of rows (N, L), multiplied token by token; the stationary law by many steps of the pair chain."""
    table = source.source.transitions.exp()
    if source.source.order == 1:
        first = torch.linalg.matrix_power(table, 200)[0]
        return torch.stack([first[r[0]] * math.prod(table[a, b] for a, b in itertools.pairwise(r)) for r in rows])
    pairs = torch.zeros(T * T, T * T, dtype=torch.float64)
    for a in range(T):
        for b in range(T):
            pairs[a * T + b, b * T : (b + 1) * T] = table[a, b]
    first = torch.linalg.matrix_power(pairs, 400)[0].view(T, T)
    return torch.stack(
        [first[r[0], r[1]] * math.prod(table[tuple(r[i : i + 3])] for i in range(len(r) - 2)) for r in rows]
    )


@ORDERS
@pytest.mark.parametrize("mask_id", [3, 1])
def test_likelihood_entropy_and_posteriors_of_every_mask_pattern_are_those_of_enumeration(order, mask_id):
    source = random_source(T, order, 1.5, 0, L)
    if mask_id != 3:  # the same source, its mask elsewhere in the vocabulary
        source = SourceDenoiser(source.source, L, mask_id)
    ids = [v for v in range(T + 1) if v != mask_id]
    rows = source.all_rows(L)
    states = torch.tensor([[ids.index(v) for v in row] for row in rows.tolist()])
    p = by_hand(source, states)
    assert float(p.sum()) == pytest.approx(1)
    torch.testing.assert_close(source.log_likelihood(rows), p.log(), rtol=1e-10, atol=1e-10)
    assert source.entropy() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-10)
    hits = torch.nn.functional.one_hot(rows, T + 1).double()  # (N, L, V)
    for pattern in all_patterns(L):
        fits = ((rows[:, None] == rows[None]) | pattern).all(-1).double() * p  # (canvas, row)
        expected = torch.einsum("cr,rlv->clv", fits, hits) / fits.sum(1)[:, None, None]
        z = torch.where(pattern, mask_id, rows)
        exact = source.posterior(z)
        assert exact.dtype == torch.float64
        torch.testing.assert_close(exact.exp(), expected, rtol=1e-9, atol=1e-15)
        assert (exact[..., mask_id] == -torch.inf).all()
        given = source.log_probs(Canvas.of(z, mask_id), pattern.expand_as(z))
        assert given.dtype == torch.float32
        assert torch.equal(given, exact[:, pattern].flatten(0, 1).float())


@ORDERS
def test_entropy_of_any_length_and_the_rate(order):
    source = random_source(T, order, 1.0, 3, L)
    for length in (1, 2, 3, 6):
        p = source.log_likelihood(source.all_rows(length)).exp()
        assert source.entropy(length) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-10)
    # a stationary source gains exactly its rate with each token, once the state is known
    for length in (order, 10, 50):
        gained = source.entropy(length + 1) - source.entropy(length)
        assert gained == pytest.approx(source.source.entropy_rate(), abs=1e-10)


@ORDERS
def test_padding_tells_nothing_and_rows_may_be_split(order, monkeypatch):
    source = random_source(T, order, 1.5, 0, L)
    z = torch.tensor([[0, 3, 1, 2], [3, 3, 2, 3]])
    padded = source.posterior(z, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool())
    torch.testing.assert_close(padded, source.posterior(torch.tensor([[0, 3, 1, 3], [3, 3, 2, 3]])))
    whole = source.posterior(z)
    # in front of a row it is not a part of the stream either, wherever that begins
    initial = torch.rand((T,) * order, generator=generator(), dtype=torch.float64)
    begun = SourceDenoiser(Markov(source.source.transitions, initial / initial.sum()), L)
    left = begun.posterior(torch.tensor([[2, 2, 0, 3, 1, 3]]), torch.tensor([[0, 0, 1, 1, 1, 1]]).bool())
    torch.testing.assert_close(left[:, 2:], begun.posterior(torch.tensor([[0, 3, 1, 3]])))
    monkeypatch.setattr("teachers.oracle.markov.STATES_AT_ONCE", 1)
    torch.testing.assert_close(source.posterior(z), whole, rtol=1e-14, atol=0)


@ORDERS
def test_transitions_close_to_the_lowest_keep_their_digits(order):
    """Against sums in log space over every row that fits."""
    table = torch.zeros((T,) * (order + 1), dtype=torch.float64)
    table[..., 0] = 140.0
    table[(0,) * order] = torch.tensor([0.0, 140.0, 70.0], dtype=torch.float64)
    source = SourceDenoiser(Markov(table.log_softmax(-1)), 6)
    z = torch.tensor([[2, 3, 3, 3, 3, 2], [3, 1, 3, 3, 1, 3], [3] * 6])
    rows = source.all_rows(6)
    fits = ((z[:, None] == rows) | (z[:, None] == 3)).all(-1)
    joint = source.log_likelihood(rows).masked_fill(~fits, -torch.inf)  # (3, N)
    hits = torch.nn.functional.one_hot(rows, T).double().log()  # (N, L, T), 0 or −∞
    expected = (joint[:, :, None, None] + hits).logsumexp(1) - joint.logsumexp(1)[:, None, None]
    torch.testing.assert_close(source.posterior(z)[..., :T], expected, rtol=1e-9, atol=1e-9)
    rows = source.sample(4, generator(), length=300)
    hidden = source.posterior(torch.where(torch.rand(rows.shape, generator=generator()) < 0.7, 3, rows))[..., :T]
    torch.testing.assert_close(hidden.logsumexp(-1), torch.zeros(4, 300, dtype=torch.float64), rtol=0, atol=1e-9)


@ORDERS
def test_samples_have_the_law_and_an_estimate_from_them_comes_back(order):
    source = random_source(T, order, 1.5, 0, L)
    rows = source.sample(100_000, generator())
    assert chi_square(rows, source) < 1.5
    back = estimate_source(rows, T, order)
    torch.testing.assert_close(back.source.transitions.exp(), source.source.transitions.exp(), rtol=0, atol=0.03)
    mean, error = source.excess_nats(rows)
    assert abs(mean) < 4 * error < 0.02
    few = estimate_source(rows[:100], T, order)
    far = (few.source.transitions.exp() - source.source.transitions.exp()).abs().mean()
    assert far > 2 * (back.source.transitions.exp() - source.source.transitions.exp()).abs().mean()


def test_smoothing_falls_back_on_shorter_contexts():
    rows = torch.tensor([[0, 1, 0, 1, 0, 2]])
    first = (torch.tensor([3, 2, 1]).double() + 0.5 / 3) / 6.5  # λ = 1/2
    counts = torch.tensor([[0, 2, 1], [2, 0, 0], [0, 0, 0]]).double()
    second = (counts + 0.5 * first) / (counts.sum(1, keepdim=True) + 0.5)
    one = estimate_source(rows, 3, 1, smoothing=0.5)
    torch.testing.assert_close(one.source.transitions.exp(), second)
    two = estimate_source(rows, 3, 2, smoothing=0.5)
    torch.testing.assert_close(two.source.transitions[1, 0].exp(), (torch.tensor([0, 1, 1]) + 0.5 * second[0]) / 2.5)
    torch.testing.assert_close(two.source.transitions[2, 2].exp(), second[2])
    # a mask in the middle of the vocabulary shifts the entries above it
    other = estimate_source(rows + (rows > 0), 3, 1, smoothing=0.5, mask_id=1)
    assert torch.equal(other.source.transitions, one.source.transitions)


def chi_square(rows, source):
    """Pearson's statistic of rows against the source, over its degrees of freedom: about 1."""
    length = rows.shape[1]
    expected = source.log_likelihood(source.all_rows(length)).exp() * len(rows)
    return float(((counts_of(rows) - expected) ** 2 / expected).sum() / (T**length - 1))


def counts_of(rows):
    """How often each row of `all_rows` occurs."""
    length = rows.shape[1]
    return torch.bincount((rows * T ** torch.arange(length - 1, -1, -1)).sum(1), minlength=T**length).double()


@ORDERS
@pytest.mark.parametrize("name", ["ancestral", "top_k"])
def test_samplers_have_the_sources_law_where_they_should(order, name):
    """With exact conditionals, ancestral sampling in many steps is exact; confidence is not, even a token at a time.

    What is filled next there depends on the tokens drawn: a likely one is kept, an unlikely one thrown away and drawn
    again later, given more context, so the law is another one, and sharper.
    """
    source = random_source(T, order, 1.0, 1, L)
    canvas = Canvas.blank(10_000, L, source.spec.mask_id)
    steps = 1024 if name == "ancestral" else L
    out = fill(source, canvas, SAMPLERS[name](), steps, generator())
    mean, error = source.excess_nats(out.tokens)
    if name == "top_k":
        assert mean < -10 * error
        assert chi_square(out.tokens, source) > 10
    else:
        assert abs(mean) < 4 * error
        assert chi_square(out.tokens, source) < 1.5
    few = fill(source, canvas, SAMPLERS[name](), 1, generator())
    assert source.excess_nats(few.tokens)[0] > 10 * error, "in one step positions are independent"


def test_law_of_ancestral_sampling_its_kl_and_the_bound():
    source = random_source(T, 1, 1.0, 1, L)
    rows = source.all_rows(L)
    p = source.log_likelihood(rows).exp()
    assert source.kl(p, L) == pytest.approx(0, abs=1e-12)
    point = torch.zeros(T**L)
    point[7] = 1
    assert source.kl(point, L) == pytest.approx(float(-p[7].log()))
    process = MaskedProcess("cosine")
    kls = []
    for steps in (1, 2, 3):
        law = ancestral_law(source, rows, steps, process)
        assert float(law.sum()) == pytest.approx(1)
        kls.append(source.kl(law, L))
    marginals = source.posterior(torch.full((1, L), T))[0]
    independent = marginals[torch.arange(L), rows].sum(1).exp()
    assert kls[0] == pytest.approx(source.kl(independent, L), abs=1e-6), "one step"
    assert kls[0] > kls[1] > kls[2] > 0

    steps, count = 2, 10_000
    transition = reveal_transitions((count, L), steps, generator(1), process)
    # draws the same transitions first
    out = fill(source, Canvas.blank(count, L, T), Ancestral(), steps, generator(1), process=process)
    torch.testing.assert_close(out.log_prob, ancestral_log_prob(source, out.tokens, transition, steps))
    bound, error = source.kl_bound(out.tokens, out.log_prob)
    torch.testing.assert_close(
        counts_of(out.tokens) / count, ancestral_law(source, rows, steps, process), rtol=0, atol=0.015
    )
    exact = 0.0  # E_c KL(q(· | c) ‖ p), over all ways to reveal
    chance = process.alpha(torch.tensor([1, 0.5, 0.0], dtype=torch.float64)).diff()
    for pattern in all_patterns(L).long():
        log_q = ancestral_log_prob(source, rows, pattern.expand_as(rows), steps)
        exact += float(chance[pattern].prod() * (log_q.exp() * (log_q - p.log())).sum())
    assert bound == pytest.approx(exact / L, abs=4 * error)
    assert exact > kls[1]
    assert 10 * error < bound


@ORDERS
@pytest.mark.parametrize(
    "config",
    [{"name": "ancestral"}, {"name": "planner", "bias": -50.0}, {"name": "threshold", "threshold": 1.0}],
    ids=lambda config: config["name"],
)
def test_a_token_a_pass_the_source_counts_its_own_likelihood_of_what_was_not_given(order, config):
    source = random_source(T, order, 1.0, 1, L)
    z = torch.full((500, L), T)
    z[::2, 0] = 1
    steps = 2**20 if config["name"] == "ancestral" else L
    out = fill(source, Canvas.of(z, T), SAMPLERS[config["name"]](**config), steps, generator())
    assert torch.equal(out.nfe, (z == T).sum(1))
    given = torch.where(z[:, 0] == 1, source.posterior(torch.full((1, L), T))[0, 0, 1], 0.0)
    torch.testing.assert_close(out.log_prob, source.log_likelihood(out.tokens) - given, rtol=0, atol=1e-5)


class Timed(TabularDenoiser):
    """The sharper, the later."""

    def features(self, canvas, select=None):
        logits = (super().features(canvas) * (0.2 + 3 * self.time(canvas)[:, None, None])).log_softmax(-1)
        return logits if select is None else logits[select]


def test_law_of_a_time_conditioned_network_is_asked_at_its_time():
    table = Timed(T + 1, 2, 0, 2.0)
    table.spec = type(table.spec)(**{**table.spec.as_dict(), "time_conditioned": True})
    law = ancestral_law(table, random_source(T, 1, 1.0, 0, 2).all_rows(2), 3)
    out = fill(table, Canvas.blank(20_000, 2, T), Ancestral(), 3, generator())
    torch.testing.assert_close(counts_of(out.tokens) / len(out.tokens), law, rtol=0, atol=0.012)


@ORDERS
def test_no_cast_moves_it(order):
    source = random_source(T, order, 1.5, 0, L)
    z = torch.tensor([[0, 3, 3, 2]])
    before, table = source.posterior(z), source.source.transitions.clone()
    cast(source, torch.bfloat16)
    for same in (source.bfloat16(), source.half().float(), source.to(torch.float32), source.to("cpu"), frozen(source)):
        assert same is source
        assert torch.equal(source.source.transitions, table)
        assert source.source.initial.dtype == torch.float64
        assert torch.equal(source.posterior(z), before)
    assert source.device == torch.device("cpu")
    assert not list(source.parameters())


@ORDERS
def test_saved_and_loaded_it_is_the_same(order, tmp_path):
    source = SourceDenoiser(random_source(T, order, 1.5, 0, L).source, L, 1, 0, 2)
    source.save(tmp_path)
    assert resolve(str(tmp_path)).family.name == "oracle"
    back = load_denoiser(str(tmp_path))
    assert back.spec == source.spec
    assert torch.equal(back.source.transitions, source.source.transitions)
    assert torch.equal(back.source.initial, source.source.initial)
    with pytest.raises(UserError, match=r"is an exact source, without adapters, but student\.adapter is set"):
        resolve(str(tmp_path)).require({"adapters": "student.adapter is set"})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: random_source(3, 3, 1.0, 0, 4), "order is 3.*1 or 2"),
        (lambda: random_source(3, 0, 1.0, 0, 4), "order is 0.*1 or 2"),
        (lambda: random_source(1, 1, 1.0, 0, 4), "tokens is 1.*at least 2"),
        (lambda: random_source(3, 1, -1.0, 0, 4), "sharpness is -1.0.*0"),
        (lambda: random_source(3, 1, math.nan, 0, 4), "sharpness is nan.*finite"),
        (lambda: random_source(16, 1, 1e3, 0, 4), "down to -.*lower sharpness"),
        (lambda: random_source(3, 1, 1.0, 0, 1), "length is 1.*at least 2"),
        (lambda: random_source(1000, 2, 1.0, 0, 4), "tokens 1000 at order 2.*order 1"),
        (lambda: random_source(3, 1, 1.0, 0, 4).all_rows(100), "100.*shorter rows"),
        (lambda: estimate_source(torch.zeros(1, 5).long(), 3, 1, 0.0), "smoothing is 0.0.*positive"),
        (lambda: Markov(torch.full((3, 2), 0.5).log()), "must be positive, sum to 1"),
        (lambda: Markov(torch.zeros(2, 2)), "must be positive, sum to 1"),
        (lambda: SourceDenoiser(Markov(torch.full((2, 2), 0.5).double().log()), 4, mask_id=7), "mask_id is 7.*0 to 2"),
        (lambda: Markov(torch.full((2, 2), math.nan)), "down to nan"),
    ],
)
def test_what_is_no_source_is_refused(make, words):
    with pytest.raises(UserError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["cut", "config", "tables", "initial", "length"])
def test_a_damaged_folder_is_refused(damage, tmp_path):
    random_source(T, 1, 1.0, 0, L).save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "config":
        config.write_text('{"model_type": "fewstep-oracle"}')
    elif damage == "length":
        values = json.loads(config.read_text())
        values["fewstep"]["max_length"] = "long"
        config.write_text(json.dumps(values))
    else:
        tables = load_file(weights)
        tables["transitions" if damage == "tables" else "initial"] *= 2
        save_file(tables, weights)
    message = r"cannot load exact source|must be positive, sum to 1|fewstep\.max_length 'long'; it must be a whole"
    with pytest.raises(UserError, match=message):
        load_denoiser(str(tmp_path))


def test_the_least_transition_leaves_room_for_four():
    assert math.log(torch.finfo(torch.float64).tiny) < 4 * LOWEST
