"""Recorded orders are the top-k sampler's own, their ELBO is exact, and the best of several is kept."""

import torch

from students.fill import fill
from students.samplers import TopK
from students.trajectories import NoisyTopK, best_order, record_order
from teachers.canvas import Canvas
from tests.tabular import TabularDenoiser

V, L, MASK = 4, 4, 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def canvas(rows, shown=0):
    z = torch.full((rows, L), MASK)
    z[:, :shown] = 1
    return Canvas.of(z, MASK)


def elbo_of(denoiser, tokens, order):
    """Σ log p(token | canvas before its pass), a pass at a time."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for n in range(int(order.max()) + 1):
        z = torch.where(order >= n, MASK, tokens)
        log_p = denoiser.log_probs(Canvas.of(z, MASK)).gather(-1, tokens[..., None]).squeeze(-1)
        total += torch.where(order == n, log_p, 0).sum(1)
    return total


@torch.no_grad()
def test_recorded_is_what_the_top_k_sampler_writes():
    denoiser = TabularDenoiser(V, L, 0)
    for shown, steps in ((0, 4), (0, 2), (1, 2), (0, 3), (1, 9)):
        recorded = record_order(denoiser, canvas(50, shown), steps, seeded())
        assert torch.equal(recorded.tokens, fill(denoiser, canvas(50, shown), TopK(), steps, seeded()).tokens)
        assert (recorded.order[:, :shown] == -1).all()
        passes = min(steps, L - shown)
        per_pass = torch.stack([(recorded.order == n).sum(1) for n in range(passes)], 1)
        assert (per_pass.sum(1) == L - shown).all()
        assert (per_pass > 0).all()
        torch.testing.assert_close(recorded.elbo, elbo_of(denoiser, recorded.tokens, recorded.order))


@torch.no_grad()
def test_given_tokens_are_revealed_in_the_order_of_their_probability():
    denoiser = TabularDenoiser(V, L, 1)
    given = torch.randint(0, 3, (20, L), generator=seeded(4))
    recorded = record_order(denoiser, canvas(20), L, seeded(), given=given)
    assert torch.equal(recorded.tokens, given)
    for n in range(L):
        z = torch.where(recorded.order >= n, MASK, given)
        log_p = denoiser.log_probs(Canvas.of(z, MASK)).gather(-1, given[..., None]).squeeze(-1)
        log_p = log_p.masked_fill(z != MASK, -torch.inf)
        assert torch.equal(log_p.argmax(1), (recorded.order == n).int().argmax(1))


@torch.no_grad()
def test_noisy_orders_choose_in_proportion_to_probability():
    denoiser = TabularDenoiser(V, L, 1)
    given = torch.tensor([[0, 2, 1, 0]]).expand(6000, L)
    recorded = record_order(denoiser, canvas(6000), L, seeded(), given=given, sampler=NoisyTopK())
    p = denoiser.log_probs(canvas(1))[0].gather(-1, given[:1].T).squeeze(-1).exp()
    first = (recorded.order == 0).double().mean(0)
    assert ((first - p / p.sum()).abs() < 0.025).all()


@torch.no_grad()
def test_the_best_of_several_orders_is_kept():
    denoiser = TabularDenoiser(V, L, 2, sharpness=2.0)
    single = record_order(denoiser, canvas(40), L, seeded())
    best = best_order(denoiser, canvas(40), L, seeded(), candidates=5)
    assert torch.equal(best.tokens, single.tokens)  # orders are chosen among, texts are not
    torch.testing.assert_close(best.elbo, elbo_of(denoiser, best.tokens, best.order))
    generator = seeded()
    candidates = [record_order(denoiser, canvas(40), L, generator)]
    candidates += [
        record_order(denoiser, canvas(40), L, generator, given=single.tokens, sampler=NoisyTopK()) for _ in range(4)
    ]
    torch.testing.assert_close(best.elbo, torch.stack([c.elbo for c in candidates]).amax(0))
    assert (best.elbo > single.elbo).any()
    assert (best.elbo == single.elbo).any()
