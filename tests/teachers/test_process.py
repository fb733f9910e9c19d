"""The noise process against calculus and against enumeration."""

import itertools
import math

import pytest
import torch

from teachers.canvas import Canvas
from teachers.process import MaskedProcess

SCHEDULES = ["log-linear", "cosine"]
MASK = 3


@pytest.fixture(params=SCHEDULES)
def process(request):
    return MaskedProcess(request.param)


@pytest.fixture
def times():
    return torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def test_alpha_falls_from_one_to_zero(process, times):
    ends = process.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)
    assert (process.alpha(times).diff() < 0).all()


def test_alpha_by_hand():
    # cosine at t = 1/2: 1 − cos(π/4)
    half = torch.tensor(0.5, dtype=torch.float64)
    assert MaskedProcess("log-linear").alpha(half).item() == pytest.approx(0.5)
    assert MaskedProcess("cosine").alpha(half).item() == pytest.approx(1 - math.sqrt(0.5))


def test_alpha_prime_is_the_derivative(process, times):
    h = 1e-6
    numeric = (process.alpha(times + h) - process.alpha(times - h)) / (2 * h)
    torch.testing.assert_close(process.alpha_prime(times), numeric, atol=1e-8, rtol=1e-6)


def test_time_of_inverts_alpha(process, times):
    torch.testing.assert_close(process.time_of(process.alpha(times)), times)


def test_elbo_weight_is_the_slope_of_log_masked(process, times):
    # −α'/(1−α) = d/dt log(1−α), differentiated numerically
    h = 1e-6
    log_masked = [torch.log(1 - process.alpha(times + sign * h)) for sign in (1, -1)]
    numeric = (log_masked[0] - log_masked[1]) / (2 * h)
    torch.testing.assert_close(process.elbo_weight(times), numeric, atol=1e-6, rtol=1e-6)


def test_log_linear_elbo_weight_is_one_over_t(times):
    torch.testing.assert_close(MaskedProcess().elbo_weight(times), 1 / times)


def test_reveal_probability(process):
    t = torch.tensor([0.3, 0.7, 1.0], dtype=torch.float64)
    torch.testing.assert_close(process.reveal_probability(t, t), torch.zeros_like(t))
    torch.testing.assert_close(process.reveal_probability(t, torch.zeros_like(t)), torch.ones_like(t))
    # staying masked over two steps is staying masked over each
    s, r = 0.6 * t, 0.2 * t
    stay = (1 - process.reveal_probability(t, s)) * (1 - process.reveal_probability(s, r))
    torch.testing.assert_close(stay, 1 - process.reveal_probability(t, r))
    # its rate at t is the ELBO's weight
    h = 1e-7
    rate = process.reveal_probability(t[:2], t[:2] - h) / h
    torch.testing.assert_close(rate, process.elbo_weight(t[:2]), atol=1e-4, rtol=1e-4)


def test_corrupt_masks_at_the_right_rate(process):
    rows, length = 4, 20_000
    x0 = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    canvas = process.corrupt(x0, Canvas.blank(rows, length, MASK), t, MASK, torch.Generator().manual_seed(1))
    z, masked = canvas.tokens, canvas.open
    assert torch.equal(z == MASK, masked)
    assert torch.equal(canvas.time, t)
    assert torch.equal(z[~masked], x0[~masked])
    wanted = 1 - process.alpha(t.double())
    error = (masked.double().mean(1) - wanted).abs()
    assert (error <= 4 * (wanted * (1 - wanted) / length).clamp(min=0).sqrt() + 1e-9).all()


def test_corrupt_never_masks_fixed_tokens(process):
    x0 = torch.zeros(3, 50, dtype=torch.long)
    fixed = torch.zeros_like(x0, dtype=torch.bool)
    fixed[:, ::3] = True
    real = torch.arange(50) < 40
    canvas = Canvas(x0, ~fixed & real, real.expand_as(x0))
    corrupted = process.corrupt(x0, canvas, torch.ones(3), MASK, torch.Generator().manual_seed(0))
    assert torch.equal(corrupted.tokens == MASK, ~fixed & real)
    assert torch.equal(corrupted.open, ~fixed & real)
    assert torch.equal(corrupted.real, canvas.real)


def test_corrupt_is_a_function_of_the_generator(process):
    x0 = torch.zeros(2, 40, dtype=torch.long)
    canvas, t = Canvas.blank(2, 40, MASK), torch.full((2,), 0.5)
    draws = [process.corrupt(x0, canvas, t, MASK, torch.Generator().manual_seed(s)).tokens for s in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_reverse_step_has_the_exact_posterior(process):
    # two positions, one known: enumerate p(z_s | z_t) = (1 − r) δ_mask + r p(x₀) and compare frequencies
    rows = 40_000
    t, s = torch.full((rows,), 0.8), torch.full((rows,), 0.35)
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.9, 0.0], [0.2, 0.2, 0.6, 0.0]])
    z = torch.tensor([MASK, 1, MASK]).repeat(rows, 1)
    out = process.reverse_step(z, probs.log().expand(rows, 3, 4), t, s, MASK, torch.Generator().manual_seed(0))
    assert (out[:, 1] == 1).all(), "a revealed token stays"
    reveal = process.reveal_probability(t[0].double(), s[0].double()).item()
    seen = torch.bincount(out[:, 0] * 4 + out[:, 2], minlength=16).double() / rows
    for a, b in itertools.product(range(4), repeat=2):
        wanted = 1.0
        for token, row in ((a, probs[0]), (b, probs[2])):
            wanted *= 1 - reveal if token == MASK else reveal * row[token].item()
        sigma = math.sqrt(wanted * (1 - wanted) / rows)
        assert abs(seen[a * 4 + b].item() - wanted) <= 4.5 * sigma, (a, b)


def test_reverse_steps_compose(process):
    # two reverse steps with a frozen prediction reveal as many tokens as one step over both
    rows, length = 8, 5_000
    z = torch.full((rows, length), MASK)
    log_probs = torch.tensor([0.5, 0.5, 0.0, 0.0]).log().expand(rows, length, 4)
    t, s, r = (torch.full((rows,), v) for v in (1.0, 0.5, 0.2))
    generator = torch.Generator().manual_seed(3)
    two = process.reverse_step(
        process.reverse_step(z, log_probs, t, s, MASK, generator), log_probs, s, r, MASK, generator
    )
    wanted = process.alpha(torch.tensor(0.2, dtype=torch.float64)).item()
    assert (two != MASK).double().mean().item() == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(rows * length))


def test_reverse_step_to_zero_leaves_no_mask(process):
    z = torch.full((3, 30), MASK)
    log_probs = torch.tensor([0.2, 0.3, 0.5, 0.0]).log().expand(3, 30, 4)
    out = process.reverse_step(z, log_probs, torch.ones(3), torch.zeros(3), MASK, torch.Generator().manual_seed(0))
    assert (out != MASK).all()
