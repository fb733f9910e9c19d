"""Di[M]O: the gradient through logits, the random start, and where the minimum is."""

import math

import pytest
import torch

from objectives.dimo import DimoConfig
from objectives.gradients import jeffreys_coefficients, marginalised, through_logits
from objectives.integral_kl import IntegralKLConfig, IntegralKLRollout
from objectives.objective import Distillation
from students.rollout import one_move
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.objectives.test_integral_kl import LENGTH, MASK, SHAPE, VOCABULARY, real_rows, small_objective
from tests.objectives.wiring import check_batch_split, check_phases_are_separate, check_rows_stand_alone
from tests.tabular import TabularDenoiser, all_patterns, all_sequences


def tabular(config, teacher, student):
    return config.build(Distillation(teacher, student, MaskedProcess(), 3, teacher))


def random_logits(seed, rows=5, vocabulary=6):
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[:, -1] = -torch.inf  # the mask column
    return logits


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, -0.2])
def test_coefficients_are_the_gradient_of_the_divergence_in_the_auxiliarys_logits(beta):
    logits, theirs = random_logits(0)[:, :-1].requires_grad_(), random_logits(1)[:, :-1].log_softmax(-1)
    ours = logits.log_softmax(-1)
    forward = (theirs.exp() * (theirs - ours)).sum()
    reverse = (ours.exp() * (ours - theirs)).sum()
    (expected,) = torch.autograd.grad((1 - beta) * forward + beta * reverse, logits)
    auxiliary, teacher = random_logits(0).log_softmax(-1), random_logits(1).log_softmax(-1)
    out = jeffreys_coefficients(auxiliary, teacher, beta, clamp=50.0)
    torch.testing.assert_close(out[:, :-1], expected)
    assert (out[:, -1] == 0).all()
    torch.testing.assert_close(out.sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_loss_has_the_released_losses_gradient_in_the_logits():
    """½‖logits − sg[logits − g]‖² there, Σ sg[g] log p here."""
    coefficients = jeffreys_coefficients(random_logits(2).log_softmax(-1), random_logits(3).log_softmax(-1), 0.0, 1.0)
    logits = random_logits(4).requires_grad_()
    through_logits(logits.log_softmax(-1), coefficients).sum().backward()
    torch.testing.assert_close(logits.grad, coefficients)


def test_with_an_exact_auxiliary_the_reverse_form_is_the_marginalised_gradient():
    """β = 1 and p_ψ = p_ν: the two ways of writing one gradient."""
    theirs, gradients = random_logits(1).log_softmax(-1), []
    for form in ("logit", "marginalised"):
        logits = random_logits(0).requires_grad_()
        ours = logits.log_softmax(-1)
        if form == "logit":
            loss = through_logits(ours, jeffreys_coefficients(ours.detach(), theirs, 1.0, clamp=50.0))
        else:
            reward = (theirs - ours.detach()).masked_fill(theirs == -torch.inf, 0.0)
            loss = marginalised(ours, reward)
        loss.sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_loss_by_hand():
    """−: Σ over re-masked positions, random starts as well as masks, of Σ_v (p_ψ − p_θ) log p_ν / L; ω = 1."""
    teacher, student = TabularDenoiser(4, 3, 0), TabularDenoiser(4, 3, 1)
    objective = tabular(DimoConfig(), teacher, student)
    with torch.no_grad():
        objective.ratio.network.table.add_(torch.randn(objective.ratio.network.table.shape).double())
    rollout = objective.rollout(batch_of(objective, None, 6), RowStreams(0, (4,), range(6)))
    assert (rollout.weight == 1).all()
    total, random_positions = torch.zeros((), dtype=torch.float64), 0
    for z, fake in zip(rollout.states[:, 0], rollout.fake.tokens, strict=True):
        ours = says(student, z[None])[0, :, :3]
        difference = says(objective.ratio.network, fake[None]).exp()[0] - says(teacher, fake[None]).exp()[0]
        for i in range(3):
            if fake[i] == 3:
                random_positions += int(z[i] != 3)
                total = total + (difference[i, :3].detach() * ours[i]).sum() / 3
    assert random_positions  # the gradient reaches tokens that were not masks
    out = objective.loss("student", rollout).sum
    torch.testing.assert_close(out, total, rtol=1e-9, atol=1e-12)
    (expected,) = torch.autograd.grad(total, student.table)
    (gradient,) = torch.autograd.grad(out, student.table)
    torch.testing.assert_close(gradient, expected)


def test_random_start_has_the_published_share_and_every_token_but_the_mask():
    student = TabularDenoiser(4, 5, 0)
    out = one_move(student, Canvas.blank(3000, 5, 3), RowStreams(0, (0,), range(3000)), random_share=0.4)
    random = out.states[:, 0] != 3
    assert (random.sum(1) == 2).all()
    torch.testing.assert_close(random.float().mean(0), torch.full((5,), 0.4), atol=0.03, rtol=0)
    shares = torch.bincount(out.states[:, 0][random], minlength=3) / random.sum()
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    assert out.revealed.all()
    assert (out.sample != 3).all()
    middle = TabularDenoiser(4, 2, 0)
    middle.spec = DenoiserSpec(mask_id=1, vocabulary=4, max_length=2)  # a mask that is not the last token
    start = one_move(middle, Canvas.blank(200, 2, 1), RowStreams(0, (0,), range(200)), random_share=0.5).states[:, 0]
    assert set(start.flatten().tolist()) == {0, 1, 2, 3}
    assert ((start == 1).sum(1) == 1).all()


def test_without_random_tokens_the_start_and_its_draws_are_as_before():
    student = TabularDenoiser(4, 3, 0)
    plain, none = (
        one_move(student, Canvas.blank(4, 3, 3), RowStreams(0, (0,), range(4)), *share) for share in ((), (0.0,))
    )
    assert torch.equal(plain.sample, none.sample)
    assert (plain.states == 3).all()


@torch.no_grad()
def fixed_point(teacher, length=3, tokens=3):
    """p with p_i(v) = mean of p_θ(v at i | z̃) over x ~ p and patterns that hide i, t ~ U: Di[M]O's stationary point."""
    x, patterns = all_sequences(tokens, length), all_patterns(length)
    theirs = torch.stack([says(teacher, torch.where(m, tokens, x)).exp() for m in patterns])  # (patterns, X, L, V)
    p = torch.full((length, tokens), 1 / tokens, dtype=torch.float64)
    for _ in range(200):
        law = p[torch.arange(length), x].prod(-1)
        chance = 0.5**length * law[None, :, None] * patterns[:, None]
        p = ((chance[..., None] * theirs[..., :tokens]).sum((0, 1))) / chance.sum((0, 1))[:, None]
    return p, x, patterns


def test_the_forward_kl_form_is_stationary_at_the_mean_of_the_teachers_predictions():
    """With an exact auxiliary, over every sample and pattern: gradient 0 there, and not at the teacher's own start."""
    teacher = TabularDenoiser(4, 3, seed=8, sharpness=2.0).requires_grad_(False)
    p, x, patterns = fixed_point(teacher)
    norms = []
    for law in (p, says(teacher, torch.full((1, 3), 3))[0, :, :3].exp()):
        student = TabularDenoiser(4, 3, seed=1)
        with torch.no_grad():
            student.table[:, :, :3] = law.log()
        objective = tabular(DimoConfig(rollout={"random_share": 0.0}), teacher, student)
        objective.ratio.network = trainable_copy(student)  # tokens of one move are independent of each other
        fake = torch.cat([torch.where(m, 3, x) for m in patterns])
        start = torch.full((len(fake), 1, 3), 3)
        chance = law[torch.arange(3), x].prod(-1).repeat(len(patterns)) / 8
        canvas, time = Canvas.blank(len(fake), 3, 3), torch.ones(len(fake))
        revealed, fake = torch.ones_like(start).bool(), Canvas.of(fake, 3)
        rollout = IntegralKLRollout(canvas, start, revealed, time, time, x.repeat(8, 1), fake, None, chance)
        (gradient,) = torch.autograd.grad(objective.loss("student", rollout).sum, student.table)
        norms.append(float(gradient.norm()))
    assert norms[0] < 1e-9
    assert norms[1] > 1e-3


@pytest.mark.parametrize(
    "config", [DimoConfig(), DimoConfig(rollout={"name": "k_step", "steps": [3]}, gradient={"jeffreys": 0.5})]
)
def test_wiring(config):
    check_batch_split(small_objective(config), None)
    check_phases_are_separate(small_objective(config), None)
    check_rows_stand_alone(small_objective(config), real_rows(8))
    assert small_objective(config).needs == "nothing"


def test_targets_carry_no_dropout_noise():
    """The released teacher stays in training mode: two passes give two targets."""
    shape = SHAPE | {"attention_dropout": 0.5}
    teacher = create_denoiser("qwen3", shape, DenoiserSpec(MASK, VOCABULARY, LENGTH)).requires_grad_(False).eval()
    objective = DimoConfig().build(Distillation(teacher, trainable_copy(teacher), MaskedProcess(), LENGTH, teacher))
    rollout = objective.rollout(batch_of(objective, None, 4), RowStreams(0, (0,), range(4)))
    for phase in objective.phases:
        assert torch.equal(objective.loss(phase, rollout).sum, objective.loss(phase, rollout).sum)


def test_what_is_not_finite_is_not_hidden():
    """The released code replaces it by 0 and steps; the loop must see it, to skip and record the update."""
    objective = tabular(DimoConfig(), TabularDenoiser(4, 3, 0), TabularDenoiser(4, 3, 1))
    rollout = objective.rollout(batch_of(objective, None, 4), RowStreams(0, (0,), range(4)))
    with torch.no_grad():
        objective.ratio.network.table.fill_(torch.nan)
    assert math.isnan(objective.loss("student", rollout).sum.detach())


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="random_share"):
        DimoConfig(rollout={"name": "k_step", "random_share": 0.4})
    with pytest.raises(ValueError, match="gradient 'logit' needs a reward"):
        IntegralKLConfig(gradient="logit", ratio="discriminator")
