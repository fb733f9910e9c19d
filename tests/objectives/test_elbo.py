"""The ELBO against exact likelihoods by enumeration, and the autoregressive loss against transformers' own."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from objectives.elbo import Autoregressive, ElboRollout, MaskedElbo, masked_cross_entropy
from objectives.masking import stratified_times
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of
from tests.objectives.wiring import tensors_of

TOKENS, L, MASK = 3, 3, 3
SPEC = DenoiserSpec(mask_id=MASK, vocabulary=TOKENS + 1, max_length=L)


class Tabular(Denoiser):
    """p(x₀ᵢ | z) from a table with an entry for every canvas."""

    def __init__(self, table):
        super().__init__()
        self.spec = SPEC
        self.table = nn.Parameter(table, requires_grad=False)  # (V, V, V, L, V): canvas, position, token

    def features(self, canvas, select=None):
        out = self.table[tuple(canvas.tokens.unbind(1))]
        return out if select is None else out[select]

    def save(self, folder):
        torch.save(self.table, folder)


def joint():
    probs = torch.rand(TOKENS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    return probs / probs.sum()


def exact_table(p):
    """Every conditional of the joint p."""
    table = torch.full((TOKENS + 1,) * L + (L, TOKENS + 1), -torch.inf, dtype=torch.float64)
    for z in itertools.product(range(TOKENS + 1), repeat=L):
        for i in range(L):
            for v in range(TOKENS):
                known = tuple(v if j == i else (slice(None) if token == MASK else token) for j, token in enumerate(z))
                table[(*z, i, v)] = p[known].sum().log()
    return table.log_softmax(-1)


def random_table():
    shape = (TOKENS + 1,) * L + (L, TOKENS + 1)
    table = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table[..., MASK] = -torch.inf
    return table.log_softmax(-1)


def bound(model, process, x0):
    """The ELBO of one sequence: Gauss-Legendre in t, enumeration over all mask patterns, through the real loss."""
    objective = MaskedElbo(model, process)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for pattern in itertools.product([False, True], repeat=L):
        k = sum(pattern)
        z = torch.where(torch.tensor([pattern]), MASK, x0)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            t = torch.tensor([node])
            alpha = process.alpha(t).item()
            rollout = ElboRollout(Canvas.blank(1, L, MASK), x0, Canvas.of(z, MASK, time=t))
            loss = objective.loss("student", rollout).sum.item()
            total += weight * (1 - alpha) ** k * alpha ** (L - k) * loss
    return total


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
@pytest.mark.parametrize("x", [(0, 1, 2), (2, 2, 0)])
def test_exact_conditionals_make_the_bound_tight(schedule, x):
    # every order of unmasking is a chain rule, so with exact conditionals the bound is −log p(x), at any schedule
    p = joint()
    value = bound(Tabular(exact_table(p)), MaskedProcess(schedule), torch.tensor([x]))
    assert value == pytest.approx(-math.log(p[x]), rel=1e-6)


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_inconsistent_conditionals_leave_a_bound(schedule):
    # the model's likelihood is the mean over orders of the products of its conditionals; Jensen puts the bound above
    table = random_table()
    for x in [(0, 1, 2), (2, 2, 0), (1, 1, 1)]:
        likelihoods, chains = [], []
        for order in itertools.permutations(range(L)):
            z, log_p = [MASK] * L, 0.0
            for i in order:
                log_p += table[(*z, i, x[i])].item()
                z[i] = x[i]
            likelihoods.append(math.exp(log_p))
            chains.append(log_p)
        value = bound(Tabular(table), MaskedProcess(schedule), torch.tensor([x]))
        assert value == pytest.approx(-np.mean(chains), rel=1e-6)
        assert value > -math.log(np.mean(likelihoods)) + 1e-3


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_the_estimate_from_rollouts_is_unbiased(schedule):
    p, rows = joint(), 3000
    objective = MaskedElbo(Tabular(exact_table(p)), MaskedProcess(schedule))
    x0 = torch.tensor([[0, 1, 2]]).repeat(rows, 1)
    rollout = objective.rollout(batch_of(objective, x0, rows), RowStreams(0, (0,), range(rows)))
    pairs = torch.stack(
        [objective.loss("student", rollout.rows(slice(i, i + 2))).sum / 2 for i in range(0, rows, 2)]
    )  # rows of a pair are antithetic, so pairs are the independent units
    error = abs(pairs.mean().item() + math.log(p[0, 1, 2]))
    # times start at 1e-3, so a thousandth of the integral is missing
    assert error < 4 * pairs.std().item() / math.sqrt(len(pairs)) + 5e-3
    assert objective.count("student", rollout) == rows * L


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_stratified_times(rows):
    u = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = u.clone()
    t = stratified_times(u, low=0.01)
    assert torch.equal(u, before), "the input is left alone"
    assert t.shape == (rows,)
    assert ((t >= 0.01) & (t <= 1)).all()
    torch.testing.assert_close(t[0::2], 0.01 + 0.99 * u[0::2])
    torch.testing.assert_close(t[0::2][: rows // 2] + t[1::2], torch.full((rows // 2,), 1.01, dtype=torch.float64))


def test_stratified_times_extremes():
    torch.testing.assert_close(stratified_times(torch.zeros(2)), torch.tensor([1e-3, 1.0]))


def test_masked_cross_entropy_by_hand():
    model = Tabular(random_table())
    x0 = torch.tensor([[0, 1, 2], [2, 2, 0]])
    masked = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    z = torch.where(masked, MASK, x0)
    loss = masked_cross_entropy(model, Canvas.of(z, MASK), x0)
    for b, i in itertools.product(range(2), range(3)):
        expected = -model.table[(*z[b], i, x0[b, i])].item() if masked[b, i] else 0.0
        assert loss[b, i].item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["elbo", "autoregressive"])
def test_with_nothing_to_predict_the_network_runs_once_and_the_loss_is_a_connected_zero(kind):
    """A process whose rows drew no mask must still take part in every pass and every gradient."""
    model = tiny("full", shift=False) if kind == "elbo" else tiny("causal", shift=True)
    x0 = torch.randint(0, 10, (2, 12 if kind == "elbo" else 1), generator=torch.Generator().manual_seed(0))
    objective = MaskedElbo(model, MaskedProcess()) if kind == "elbo" else Autoregressive(model)
    passes = []
    model.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    z = Canvas(x0, torch.zeros_like(x0).bool(), time=torch.full((2,), 0.5))
    loss = objective.loss("student", ElboRollout(Canvas.blank(*x0.shape, 10), x0, z)).sum
    loss.backward()
    assert loss == 0
    assert len(passes) == 1
    assert all((p.grad == 0).all() for p in model.parameters())


def tiny(attention, shift, mask_id=10):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 48,
        "initializer_range": 0.3,
    }
    spec = DenoiserSpec(mask_id=mask_id, vocabulary=11, max_length=16, attention=attention, shift=shift)
    return create_denoiser("qwen3", shape, spec)


def test_autoregressive_loss_equals_transformers():
    judge = tiny("causal", shift=True)
    x0 = torch.randint(0, 10, (4, 12), generator=torch.Generator().manual_seed(0))
    objective = Autoregressive(judge)
    rollout = objective.rollout(batch_of(objective, x0, 4), RowStreams(0, (0,), range(4)))
    ours = objective.loss("student", rollout).sum / objective.count("student", rollout)
    logits = judge.model(input_ids=x0).logits.clone()
    logits[..., 10] = -torch.inf  # the mask token is no text
    theirs = judge.model.loss_function(logits=logits, labels=x0, vocab_size=11)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert objective.count("student", rollout) == 4 * 11


@pytest.mark.parametrize("kind", ["elbo", "autoregressive"])
def test_sums_and_counts_add_up_over_any_split(kind):
    # what makes gradient accumulation and data parallelism exact
    model = tiny("full" if kind == "elbo" else "causal", shift=kind == "autoregressive")
    objective = MaskedElbo(model, MaskedProcess()) if kind == "elbo" else Autoregressive(model)
    x0 = torch.randint(0, 10, (8, 12), generator=torch.Generator().manual_seed(0))
    rollout = objective.rollout(batch_of(objective, x0, 8), RowStreams(0, (0,), range(8)))

    def results(parts):
        model.zero_grad()
        outs = [objective.loss("student", rollout.rows(p)) for p in parts]
        total = sum(o.sum for o in outs)
        total.backward()
        count = sum(objective.count("student", rollout.rows(p)) for p in parts)
        metrics = {k: [sum(o.metrics[k][j].item() for o in outs) for j in (0, 1)] for k in outs[0].metrics}
        return total.item(), count.item(), metrics, [p.grad.clone() for p in model.parameters()]

    whole = results([slice(0, 8)])
    split = results([slice(0, 2), slice(2, 6), slice(6, 8)])
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    assert split[1] == whole[1]
    for name, (total, count) in whole[2].items():
        assert split[2][name][0] == pytest.approx(total, rel=1e-5)
        assert split[2][name][1] == count
    for a, b in zip(whole[3], split[3], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_rollout_does_not_depend_on_how_rows_are_split_over_processes():
    objective = MaskedElbo(tiny("full", shift=False), MaskedProcess())
    x0 = torch.randint(0, 10, (8, 12), generator=torch.Generator().manual_seed(0))
    whole = objective.rollout(batch_of(objective, x0, 8), RowStreams(3, (5,), range(8)))
    halves = [objective.rollout(batch_of(objective, x0[r], 4), RowStreams(3, (5,), r)) for r in (range(4), range(4, 8))]
    for field, value in tensors_of(whole).items():
        assert torch.equal(value, torch.cat([tensors_of(half)[field] for half in halves]))
    assert (whole.z.tokens == 10).any()


@pytest.mark.parametrize("make", [lambda m: MaskedElbo(m, MaskedProcess()), Autoregressive])
def test_real_data_is_required(make):
    objective = make(tiny("full", shift=False))
    assert objective.needs == "rows"
    with pytest.raises(AssertionError, match="needs labels"):
        objective.rollout(batch_of(objective, None, 2), RowStreams(0, (0,), range(2)))
