"""Random numbers are a pure function of (seed, key, row), and exact."""

import math

import pytest
import torch

from teachers.randomness import RowStreams, beta, categorical, split_mix, uniform


@pytest.mark.parametrize(
    ("seed", "numbers"),
    [  # of Vigna's splitmix64.c
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]),
        (
            1234567,
            [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
        ),
    ],
)
def test_numbers_are_those_of_the_reference(seed, numbers):
    drawn = split_mix(torch.tensor(seed), torch.arange(len(numbers)))
    assert [number % 2**64 for number in drawn.tolist()] == numbers


def test_a_row_is_a_stream_of_the_reference():
    """Its 53 highest bits, from where the key's own stream says; and of 24 bits in float32."""
    streams = RowStreams(7, (3,), [5])
    begins = streams.seeds.clone()
    numbers = [n % 2**64 for n in split_mix(begins, torch.arange(6)).tolist()]
    assert uniform(streams, 1, 2, 2)[0].flatten().tolist() == [(n >> 11) / 2**53 for n in numbers[:4]]
    assert uniform(streams, 1, 2, dtype=torch.float32)[0].tolist() == [(n >> 40) / 2**24 for n in numbers[4:]]


def test_draws_go_on_anywhere():
    """A stream needs no state but how many numbers it has given: those of later draws are known beforehand."""
    whole = uniform(RowStreams(1, (9,), range(3)), 3, 20)
    streams = RowStreams(1, (9,), range(3))
    drawn = [uniform(streams, 3, n) for n in (7, 0, 1, 12)]
    assert torch.equal(torch.cat(drawn, 1), whole)


def test_draws_do_not_depend_on_how_rows_are_split():
    whole = RowStreams(7, (3,), range(8))
    parts = [RowStreams(7, (3,), range(4)), RowStreams(7, (3,), range(4, 8))]
    for shape in ((5,), (2, 3), ()):  # successive draws too: every row's stream advances alike
        drawn = torch.cat([uniform(p, 4, *shape) for p in parts])
        assert torch.equal(uniform(whole, 8, *shape), drawn)


def test_beta_does_not_depend_on_how_rows_are_split():
    drawn = torch.cat([beta(RowStreams(7, (3,), r), 4, 2, 2) for r in (range(4), range(4, 8))])
    assert torch.equal(beta(RowStreams(7, (3,), range(8)), 8, 2, 2), drawn)


@pytest.mark.parametrize(("seed", "key", "row"), [(8, (3,), 0), (7, (4,), 0), (7, (3,), 1)])
def test_seed_key_and_row_all_matter(seed, key, row):
    first = uniform(RowStreams(7, (3,), [0]), 1, 6)
    assert not torch.equal(first, uniform(RowStreams(seed, key, [row]), 1, 6))


def test_take_shares_state():
    streams, reference = RowStreams(1, (0,), range(4)), RowStreams(1, (0,), range(4))
    expected = uniform(reference, 4, 2)  # two numbers from every row
    first = uniform(streams.take(torch.tensor([2, 0])), 2, 1)
    assert torch.equal(first[:, 0], expected[[2, 0], 0])
    rest = uniform(streams, 4, 1)
    # rows 0 and 2 go on where the taken streams stopped; rows 1 and 3 start
    assert torch.equal(rest[:, 0], torch.stack([expected[0, 1], expected[1, 0], expected[2, 1], expected[3, 0]]))


def test_taking_no_rows():
    none = RowStreams(1, (0,), range(4)).take(torch.tensor([], dtype=torch.long))
    assert uniform(none, 0, 3).shape == (0, 3)


def test_wrong_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="3 rows"):
        uniform(RowStreams(0, (0,), range(2)), 3, 1)


def test_streams_are_uncorrelated():
    draws = uniform(RowStreams(0, (0,), range(16)), 16, 4_000)
    correlation = torch.corrcoef(draws) - torch.eye(16)
    assert correlation.abs().max() < 5 / math.sqrt(4_000)


def test_numbers_of_a_stream_and_of_neighbours_are_independent():
    """Pairs of numbers that follow each other, of rows and of updates that do, fill the square evenly."""
    n, cells = 20_000, 8
    for one, other in (
        (uniform(RowStreams(0, (0,), [0]), 1, n)[0], uniform(RowStreams(0, (0,), [1]), 1, n)[0]),
        (uniform(RowStreams(0, (0,), [0]), 1, n)[0], uniform(RowStreams(0, (1,), [0]), 1, n)[0]),
        (uniform(RowStreams(0, (0,), range(n)), n), uniform(RowStreams(1, (0,), range(n)), n)),
        tuple(uniform(RowStreams(0, (0,), [0]), 1, n, 2)[0].unbind(1)),
        tuple(uniform(RowStreams(0, (0,), range(n)), n, 2).unbind(1)),
    ):
        seen = torch.bincount((cells * one).long() * cells + (cells * other).long(), minlength=cells**2)
        chi_squared = ((seen - n / cells**2) ** 2 / (n / cells**2)).sum()
        assert chi_squared < 118  # of 63 degrees of freedom: exceeded 3 times in 100,000


@pytest.mark.parametrize("lowest", [1, 16, 52])
def test_every_bit_is_one_half_of_the_time(lowest):
    ones = ((uniform(RowStreams(5, (0,), range(50)), 50, 400) * 2**lowest).long() % 2).double().mean()
    assert abs(ones - 0.5) < 4.5 * 0.5 / math.sqrt(20_000)


def test_split_streams_are_new_and_a_function_of_the_row():
    whole = RowStreams(2, (0,), range(4))
    parts = whole.split(3)
    alone = RowStreams(2, (0,), [2]).split(3)
    drawn = uniform(parts, 12, 5)
    assert torch.equal(drawn[6:9], uniform(alone, 3, 5))
    assert len(torch.cat([drawn, uniform(whole, 4, 5)]).unique()) == 80


def _kolmogorov_smirnov(samples, cdf):
    ordered = samples.sort().values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    values = cdf(ordered)
    return max((values - steps[:-1]).abs().max(), (values - steps[1:]).abs().max()) * math.sqrt(n)


@pytest.mark.parametrize(
    ("a", "b", "cdf"),
    [
        (1, 1, lambda x: x),
        (2, 2, lambda x: 3 * x**2 - 2 * x**3),
        (1, 3, lambda x: 1 - (1 - x) ** 3),
        (3, 1, lambda x: x**3),
    ],
)
def test_beta_has_its_law(a, b, cdf):
    draws = beta(torch.Generator().manual_seed(0), 20_000, a, b)
    assert _kolmogorov_smirnov(draws, cdf) < 1.95  # exceeded once in a thousand seeds


def test_the_bound_on_beta_can_fail():
    # the check above tells Beta(2, 2) from uniform
    assert _kolmogorov_smirnov(beta(torch.Generator().manual_seed(0), 20_000, 1, 1), lambda x: 3 * x**2 - 2 * x**3) > 5


JUST_BELOW_ONE = math.nextafter(1.0, 0.0)


@pytest.mark.parametrize("u", [0.0, 5e-324, 0.5, JUST_BELOW_ONE])
@pytest.mark.parametrize("forbidden", [[0], [7], [0, 1], [6, 7], [0, 3, 4, 7]])
def test_categorical_never_draws_what_is_forbidden(u, forbidden):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 8, generator=generator) * 5
    logits[:, forbidden] = -torch.inf
    for log_probs in (logits, logits.log_softmax(-1)):  # unnormalised ones too
        drawn = categorical(log_probs, torch.full((500,), u, dtype=torch.float64))
        assert torch.isfinite(log_probs.gather(-1, drawn[:, None])).all()


def test_categorical_extremes_are_the_first_and_last_allowed():
    log_probs = torch.tensor([0.0, 0.2, 0.3, 0.5, 0.0]).log()
    assert categorical(log_probs, torch.tensor(0.0, dtype=torch.float64)).item() == 1
    assert categorical(log_probs, torch.tensor(JUST_BELOW_ONE, dtype=torch.float64)).item() == 3


def test_categorical_inverts_the_cumulative_distribution():
    log_probs = torch.tensor([0.125, 0.25, 0.0, 0.625], dtype=torch.float64).log()
    # edges: a uniform on a boundary belongs to the token above it
    u = torch.tensor([0.0, 0.1249, 0.126, 0.374, 0.376, 0.99], dtype=torch.float64)
    assert categorical(log_probs.expand(6, 4), u).tolist() == [0, 0, 1, 1, 3, 3]


def test_categorical_draws_rare_tokens():
    # p = 1e-12: float32 Gumbel noise never draws it, the inverse does at the right uniforms
    log_probs = torch.tensor([1 - 1e-12, 1e-12], dtype=torch.float64).log()
    assert categorical(log_probs, torch.tensor(1 - 5e-13, dtype=torch.float64)).item() == 1
    assert categorical(log_probs, torch.tensor(1 - 2e-12, dtype=torch.float64)).item() == 0


def test_categorical_frequencies():
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.05, 0.0, 0.6, 0.35])
    n = 50_000
    drawn = categorical(probs.log().expand(n, 4), uniform(generator, n))
    seen = torch.bincount(drawn, minlength=4) / n
    assert ((seen - probs).abs() <= 4.5 * (probs * (1 - probs) / n).sqrt()).all()


def test_padding_takes_no_draws():
    """A row's real tokens get what they get without padding, now and later; a number of the row's own stands before."""
    real = torch.tensor([[False, True, True, True], [True, True, False, False]])
    padded, sizes = RowStreams(3, (0,), range(2)), (3, 2)
    for shape in ((4,), (5, 4), (5,)):  # the last one has a number for the row
        drawn = uniform(padded, 2, *shape, real=real)
        before = shape[-1] - 4
        where = torch.cat([torch.ones(2, before).bool(), real], 1)
        for row, size in enumerate(sizes):
            alone = RowStreams(3, (0,), [row])
            for earlier in ((4,), (5, 4), (5,)):
                expected = uniform(alone, 1, *earlier[:-1], earlier[-1] - 4 + size)[0]
                if earlier == shape:
                    break
            assert torch.equal(drawn[row, ..., where[row]], expected)
            assert not drawn[row, ..., ~where[row]].any()
