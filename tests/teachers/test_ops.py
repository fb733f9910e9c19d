"""What is computed some rows at a time is what is computed at once, bit for bit, with its gradients."""

import pytest
import torch

from objectives.divergences import entropy, expectation, kl
from teachers.ops import parts
from teachers.ops.log_softmax import log_softmax_without
from teachers.ops.parts import mapped, reduced, row_parts

VOCABULARY, EXCLUDED = 11, [3, 4, 10]


@pytest.fixture(params=[1, 3 * VOCABULARY, 2**17], ids=["one row", "three rows", "all rows"])
def at_once(request, monkeypatch):
    monkeypatch.setattr(parts, "IN_CACHE", request.param)


def excluded():
    return torch.tensor(EXCLUDED)


def logits(seed, dtype=torch.float32, shape=(2, 4)):
    draws = 3 * torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return draws.to(dtype).requires_grad_()


def gradients(function, *inputs):
    """What it gives, and its gradients under weights of each row's own."""
    out = function(*inputs)
    rows = torch.linspace(-1, 2, out[..., 0].numel() if out.dim() == 3 else out.numel()).view(2, 4)
    weights = rows[..., None] * torch.linspace(0, 1, VOCABULARY) if out.dim() == 3 else rows
    return [out.detach(), *torch.autograd.grad((torch.where(out.isfinite(), out, 0.0) * weights).sum(), inputs)]


def assert_same(one, other):
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_softmax_is_that_of_filled_logits(dtype, at_once):
    given = logits(0, dtype)
    filled = gradients(lambda x: x.float().index_fill(-1, excluded(), -torch.inf).log_softmax(-1), given)
    assert_same(gradients(lambda x: log_softmax_without(x, excluded()), given), filled)
    assert not filled[1][..., EXCLUDED].any()


def plain_expectation(log_p, values):
    never = log_p == -torch.inf
    return (log_p.exp() * values.masked_fill(never, 0.0)).sum(-1)


def plain_kl(log_p, log_q):
    never = log_p == -torch.inf
    return plain_expectation(log_p, log_p.masked_fill(never, 0.0) - log_q.masked_fill(never, 0.0))


def test_divergences_are_their_formulas_at_once(at_once):
    p, q = (log_softmax_without(logits(seed), excluded()).detach().requires_grad_() for seed in (1, 2))
    assert_same(gradients(kl, p, q), gradients(plain_kl, p, q))
    assert_same(gradients(expectation, p, q), gradients(plain_expectation, p, q))
    assert_same(gradients(entropy, p), gradients(lambda p: -plain_expectation(p, p), p))


def test_what_the_target_never_says_is_infinitely_far_away(at_once):
    p, q = torch.tensor([[0.5, 0.5, 0.0]] * 2).log(), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]).log()
    torch.testing.assert_close(kl(p, q), torch.tensor([torch.inf, 0.5 * torch.tensor(2.0).log()]))
    assert kl(q, p).tolist()[1] == torch.inf
    assert kl(p * torch.nan, q).isnan().all()  # a network that has diverged is seen


def test_of_no_rows_there_is_nothing(at_once):
    assert log_softmax_without(torch.zeros(0, VOCABULARY), excluded()).shape == (0, VOCABULARY)
    assert kl(*torch.zeros(2, 0, VOCABULARY)).shape == (0,)


def test_parts_are_views_of_some_rows(monkeypatch):
    monkeypatch.setattr(parts, "IN_CACHE", 2 * VOCABULARY)
    wide, narrow = torch.arange(5.0 * VOCABULARY).view(5, VOCABULARY), torch.arange(5.0)
    sizes = [(one.shape, other.shape) for one, other in row_parts(wide, narrow)]
    assert sizes == [((2, VOCABULARY), (2,))] * 2 + [((1, VOCABULARY), (1,))]
    assert torch.equal(reduced(lambda x, n: x[:, 0] + n, wide, narrow), wide[:, 0] + narrow)
    assert torch.equal(mapped(lambda x, n: x * n[:, None], wide, narrow), wide * narrow[:, None])
