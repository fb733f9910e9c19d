"""Each gradient estimator against the exact gradient, by enumeration on a vocabulary of 3 and length 3."""

import pytest
import torch

from objectives.gradients import (
    clipped_ratio,
    grouped_advantage,
    grouped_token_advantage,
    marginalised,
    per_token,
    score_function,
)
from tests.batches import says
from tests.tabular import TabularDenoiser, all_patterns, all_sequences

V, L, MASK = 3, 3, 3  # three real tokens; the mask is the fourth
X = all_sequences(V, L)
PATTERNS = all_patterns(L)
TIME = torch.tensor(0.6, dtype=torch.float64)
PATTERN_WEIGHT = TIME ** PATTERNS.sum(1) * (1 - TIME) ** (L - PATTERNS.sum(1))


def one_move_log_prob(student):
    """log p_ν(x) of every sequence written in one move, differentiable: (V^L,)."""
    start = torch.full((1, L), MASK)
    return says(student, start)[0].expand(len(X), L, V + 1).gather(-1, X[..., None]).squeeze(-1)


def two_move_log_prob(student, tau):
    """log p_ν(x) of every sequence written through z_τ, all intermediate states summed out."""
    start = says(student, torch.full((1, L), MASK))[0].expand(len(X), L, V + 1)
    first = start.gather(-1, X[..., None]).squeeze(-1)
    total = []
    for pattern in PATTERNS:  # True: still masked at τ
        z = torch.where(pattern, MASK, X)
        second = says(student, z).gather(-1, X[..., None]).squeeze(-1)
        weight = tau ** pattern.sum() * (1 - tau) ** (~pattern).sum()
        total.append(torch.log(weight) + torch.where(pattern, second, first).sum(-1))
    return torch.logsumexp(torch.stack(total), 0)


def corrupted_log_marginal(log_p, pattern):
    """log q(z) for the canvas that each x becomes under ``pattern``: (V^L,)."""
    z = torch.where(pattern, MASK, X)
    same = (z[:, None] == z[None]).all(-1)
    return torch.logsumexp(torch.where(same, log_p[None], -torch.inf), 1)


@pytest.fixture
def networks():
    return TabularDenoiser(V + 1, L, seed=0), TabularDenoiser(V + 1, L, seed=1)


def gradient(loss, student):
    return torch.autograd.grad(loss, student.table, retain_graph=True)[0]


@pytest.mark.parametrize("moves", [1, 2])
def test_score_function_is_the_gradient_of_the_integral_kl(networks, moves):
    """E[R ∇log p] with the exact ratio is ∇KL(q_ν(z_t)‖q_θ(z_t)); through z_τ with the moves' own log-probability."""
    student, teacher = networks
    tau = torch.tensor(0.4, dtype=torch.float64)

    def log_p(model):
        return one_move_log_prob(model).sum(-1) if moves == 1 else two_move_log_prob(model, tau)

    ours, theirs = log_p(student), log_p(teacher).detach()
    exact = torch.zeros(())
    estimate = torch.zeros(())
    for pattern, weight in zip(PATTERNS, PATTERN_WEIGHT, strict=True):
        q_ours, q_theirs = (corrupted_log_marginal(p, pattern) for p in (ours, theirs))
        exact = exact + weight * (ours.exp() * (q_ours - q_theirs)).sum()
        advantage = (q_theirs - q_ours).detach()
        if moves == 1:
            terms = ours.detach().exp() * score_function(ours, advantage)
        else:  # every path to x: its own probability, its own log-probability, the same reward
            start = one_move_log_prob(student)
            terms = torch.zeros(len(X), dtype=torch.float64)
            for middle in PATTERNS:
                z = torch.where(middle, MASK, X)
                second = says(student, z).gather(-1, X[..., None]).squeeze(-1)
                path = torch.where(middle, second, start).sum(-1)
                chance = path.detach().exp() * tau ** middle.sum() * (1 - tau) ** (~middle).sum()
                terms = terms + chance * score_function(path, advantage)
        estimate = estimate + weight * terms.sum()
    torch.testing.assert_close(gradient(estimate, student), gradient(exact, student), rtol=1e-9, atol=1e-12)


def diagonal_reference(student, teacher):
    """∇ of Σ_i KL(p_ν(xᵢ) ‖ p_θ(xᵢ | z̃)) over masked i, with the law of z̃ held fixed: what Di[M]O and IDLM follow."""
    log_p = says(student, torch.full((1, L), MASK))[0]
    sequence = one_move_log_prob(student).sum(-1).detach().exp()
    total = torch.zeros(())
    for pattern, weight in zip(PATTERNS, PATTERN_WEIGHT, strict=True):
        z = torch.where(pattern, MASK, X)
        theirs = says(teacher, z).detach()[..., :V]
        ours = log_p[None, :, :V].expand_as(theirs)
        divergence = (ours.exp() * (ours - theirs)).sum(-1)
        total = total + weight * (sequence[:, None] * divergence * pattern).sum()
    return gradient(total, student)


def test_marginalised_is_the_exact_diagonal_gradient(networks):
    """The auxiliary denoiser of a one-move student is the student itself: its tokens are independent."""
    student, teacher = networks
    log_p = says(student, torch.full((1, L), MASK))[0]
    sequence = one_move_log_prob(student).sum(-1).detach().exp()
    estimate = torch.zeros(())
    for pattern, weight in zip(PATTERNS, PATTERN_WEIGHT, strict=True):
        z = torch.where(pattern, MASK, X)
        theirs, ours = says(teacher, z).detach(), log_p.detach()[None].expand(len(X), L, V + 1)
        reward = torch.where(torch.arange(V + 1) == MASK, 0.0, theirs - ours)
        reward[..., MASK] = 0.0
        terms = marginalised(log_p[None].expand(len(X), L, V + 1).reshape(-1, V + 1), reward.reshape(-1, V + 1))
        estimate = estimate + weight * (sequence[:, None] * terms.view(len(X), L) * pattern).sum()
    torch.testing.assert_close(gradient(estimate, student), diagonal_reference(student, teacher), rtol=1e-9, atol=1e-12)


def test_per_token_has_the_marginalised_gradient_in_expectation(networks):
    """One reward a token: the same gradient, now with the token drawn. The token at a masked position is free of z̃."""
    student, teacher = networks
    log_p = one_move_log_prob(student)
    sequence = log_p.sum(-1).detach().exp()
    estimate = torch.zeros(())
    for pattern, weight in zip(PATTERNS, PATTERN_WEIGHT, strict=True):
        z = torch.where(pattern, MASK, X)
        theirs = says(teacher, z).gather(-1, X[..., None]).squeeze(-1)
        terms = per_token(log_p, (theirs - log_p).detach())
        estimate = estimate + weight * (sequence[:, None] * terms * pattern).sum()
    torch.testing.assert_close(gradient(estimate, student), diagonal_reference(student, teacher), rtol=1e-9, atol=1e-12)


def test_clipped_ratio_gives_the_gradient_of_the_clipped_objective():
    """−A w log p against −min(ρ A, clamp(ρ) A), for draws that have become likelier and less likely, good and bad."""
    now = torch.tensor([0.5, 0.1, -0.1, -0.5, 0.5, 0.1, -0.1, -0.5], dtype=torch.float64, requires_grad=True)
    before, advantage = torch.zeros(8).double(), torch.tensor([1.5] * 4 + [-0.7] * 4).double()
    ratio = (now - before).exp()
    surrogate = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
    (expected,) = torch.autograd.grad(surrogate, now)
    weight = clipped_ratio(now, before, advantage, 0.2)
    (found,) = torch.autograd.grad(score_function(now, weight * advantage).sum(), now)
    torch.testing.assert_close(found, expected)
    assert (weight == 0).tolist() == [True, False, False, False, False, False, False, True]


def test_grouped_advantage_by_hand():
    reward = torch.tensor([1.0, 2.0, 3.0, 6.0, -1.0, -1.0, -1.0, -1.0])
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / torch.tensor(14 / 3).sqrt()
    out = grouped_advantage(reward, 4, clamp=3.0)
    torch.testing.assert_close(out[:4], expected)
    assert (out[4:] == 0).all()  # equal rewards teach nothing, and do not divide by zero
    assert grouped_advantage(torch.tensor([0.0] * 15 + [1.0]), 16, clamp=3.0).max() == 3.0


def test_grouped_token_advantage_ignores_unused_tokens():
    reward = torch.tensor([[1.0, 100.0], [3.0, 5.0]])
    used = torch.tensor([[True, False], [True, True]])
    out = grouped_token_advantage(reward, used, 2, clamp=10.0)
    torch.testing.assert_close(out[used], torch.tensor([-2.0, 0.0, 2.0]) / 2)
