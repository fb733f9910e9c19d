"""The wiring: losses by hand, invariance to batch splits, and that training lowers the divergence."""

import itertools

import pytest
import torch

from objectives.corruption import beta_density
from objectives.didi_instruct import DidiInstructConfig
from objectives.divergences import kl
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Distillation
from objectives.ratios import clamped_log_odds, smoothed_cross_entropy, soft_bce
from students.critic import Discriminator
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.networks import shape
from tests.tabular import TabularDenoiser

SHAPE = shape(32, 2)
LENGTH, VOCABULARY, MASK = 12, 11, 1

CONFIGS = {
    "default": IntegralKLConfig(rollout={"steps": [2, 4]}),
    "didi": DidiInstructConfig(),
    "two moves, per token": IntegralKLConfig(rollout="two_moves", gradient="per_token", corruption="coupled"),
    "two moves": IntegralKLConfig(rollout="two_moves", corruption="coupled"),
    "nested": IntegralKLConfig(corruption="nested", rollout={"steps": [2, 3]}, gradient={"exact_share": 0.5}),
    "one move": IntegralKLConfig(
        rollout="one_move",
        regularisers={"teacher_weight": 0.1, "teacher_divergence": "jeffreys", "entropy_bonus": 0.1},
    ),
    "auxiliary, score": IntegralKLConfig(
        gradient={"name": "score_function", "group_size": 2},
        rollout={"steps": [3]},
        ratio={"label_smoothing": 0.1},
    ),
}


def small_objective(config, seed=0):
    torch.manual_seed(seed)
    teacher = create_denoiser("qwen3", SHAPE, DenoiserSpec(MASK, VOCABULARY, LENGTH)).requires_grad_(False).eval()
    student = trainable_copy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return config.build(Distillation(teacher, student, MaskedProcess(), LENGTH, teacher))


def real_rows(rows):
    return torch.randint(2, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("phase", ["critic", "student"])
def test_gradient_does_not_depend_on_how_the_batch_is_split(name, phase):
    """1×8 rows and 8 rows in micro-batches of the group: one gradient."""
    objective = small_objective(CONFIGS[name])
    rollout = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (0,), range(8)))
    network = objective.networks[phase]
    gradients = []
    for size in (8, objective.group):
        network.zero_grad()
        for start in range(0, 8, size):
            out = objective.loss(phase, rollout.rows(slice(start, start + size)))
            (out.sum / objective.count(phase, rollout)).backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert gradients[0]
    for one, many in zip(*gradients, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("name", CONFIGS)
def test_each_phase_reaches_only_its_own_network(name):
    objective = small_objective(CONFIGS[name])
    rollout = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (0,), range(8)))
    for phase, other in (("critic", "student"), ("student", "critic")):
        objective.loss(phase, rollout).sum.backward()
        assert all(p.grad is None for p in objective.networks[other].parameters())
        assert any(p.grad is not None for p in objective.networks[phase].parameters())
        objective.networks[phase].zero_grad()


@pytest.mark.parametrize("rollout", [{"steps": [1]}, "two_moves"])
def test_marginalised_loss_by_hand(rollout):
    """Of each move −ω/L Σ over corrupted revealed positions of Σ_v p_ν(v) clamp(log p_θ − log p_ψ)."""
    config = IntegralKLConfig(rollout=rollout, ratio={"reward_clamp": 0.5})
    teacher, student = TabularDenoiser(4, 3, 0), TabularDenoiser(4, 3, 1)
    objective = config.build(Distillation(teacher, student, MaskedProcess(), 3, teacher))
    with torch.no_grad():
        objective.ratio.network.table.add_(torch.randn(objective.ratio.network.table.shape).double())
    rollout = objective.rollout(batch_of(objective, None, 2), RowStreams(0, (4,), range(2)))
    total = torch.zeros((), dtype=torch.float64)
    for row, move in itertools.product(range(2), range(rollout.states.shape[1])):
        z, fake = rollout.states[row, move], rollout.fake.tokens[row]
        ours = says(student, z[None])[0]
        for i in range(3):
            if fake[i] != 3 or not rollout.revealed[row, move, i]:
                continue
            reward = says(teacher, fake[None])[0, i, :3] - says(objective.ratio.network, fake[None])[0, i, :3]
            total = total - rollout.weight[row] / 3 * (ours[i, :3].exp() * reward.clamp(-0.5, 0.5)).sum()
    out = objective.loss("student", rollout)
    torch.testing.assert_close(out.sum, total, rtol=1e-6, atol=1e-8)
    assert out.sum != 0


def test_teacher_and_critic_read_the_corrupted_sample_once_for_both_moves():
    objective = small_objective(CONFIGS["two moves"])
    rollout = objective.rollout(batch_of(objective, None, 8), RowStreams(0, (0,), range(8)))
    networks = objective.teacher, objective.ratio.network
    before = [network.tally.passes for network in networks]
    objective.loss("student", rollout)
    assert [network.tally.passes - passes for network, passes in zip(networks, before, strict=True)] == [8, 8]


def test_score_function_loss_by_hand():
    """−ω/π · A · (log p(z_τ | masked) + log p(x | z_τ)) plus the regularisers, as DiDi-Instruct describes it."""
    config = DidiInstructConfig(
        regularisers={"teacher_weight": 0.03, "entropy_bonus": 0.01}, gradient={"group_size": 2}
    )
    objective = small_objective(config)
    teacher, student = objective.teacher, objective.student
    rollout = objective.rollout(batch_of(objective, real_rows(4), 4), RowStreams(0, (1,), range(4)))
    corrupted = rollout.fake.tokens == MASK
    assert (corrupted == (rollout.real.tokens == MASK)).all()  # real and fake are corrupted alike
    odds = clamped_log_odds(objective.ratio.network(rollout.fake), 1e-6, 8.0)
    means = torch.stack([odds[i][corrupted[i]].mean() for i in range(4)])
    expected = torch.zeros(())
    for pair in ((0, 1), (2, 3)):
        a, b = means[list(pair)]
        assert rollout.weight[pair[0]] == rollout.weight[pair[1]]  # a group shares its τ
        for i, own, other in ((pair[0], a, b), (pair[1], b, a)):
            advantage = ((own - other) / 2) / (torch.stack([a, b]).std() + 1e-8)
            log_prob, penalty = 0.0, 0.0
            for m in range(2):
                z = rollout.states[i, m]
                log_p = says(student, z[None])[0]
                hit = log_p.gather(-1, rollout.sample[i][:, None]).squeeze(-1)
                log_prob = log_prob + hit[rollout.revealed[i, m]].sum()
                masked = z == MASK
                theirs = says(teacher, z[None])[0][masked]
                p = log_p[masked]
                entropies = -(p.exp() * p.masked_fill(p == -torch.inf, 0)).sum(-1)
                penalty = penalty + (0.03 * kl(theirs, p) - 0.01 * entropies).mean() / 2
            expected = expected - rollout.weight[i] * advantage * log_prob + penalty
    torch.testing.assert_close(objective.loss("student", rollout).sum, expected, rtol=1e-3, atol=1e-4)


def test_published_weight_is_one_over_tau_over_the_density():
    objective = small_objective(DidiInstructConfig())
    rollout = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (2,), range(8)))
    tau = torch.linspace(0.02, 0.98, 200_001, dtype=torch.float64)
    candidates = (1 / tau).clamp(0.1, 10) / beta_density(tau, 2, 2)
    for weight in rollout.weight.double():
        assert (candidates / weight - 1).abs().min() < 1e-3


def test_parts_by_hand():
    log_p = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    expected = -0.9 * torch.tensor(0.5).log() - 0.1 * (torch.tensor(0.5).log() + 2 * torch.tensor(0.25).log()) / 3
    torch.testing.assert_close(smoothed_cross_entropy(log_p, torch.tensor([0]), 0.1), expected[None])
    logit = torch.tensor(0.7)
    p = logit.sigmoid()
    torch.testing.assert_close(soft_bce(logit, 0.9), -(0.9 * p.log() + 0.1 * (1 - p).log()))
    torch.testing.assert_close(clamped_log_odds(logit, 1e-6, 8.0), logit, rtol=1e-4, atol=1e-5)
    assert clamped_log_odds(torch.tensor(50.0), 1e-6, 8.0) == 8.0
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    torch.testing.assert_close(
        torch.trapezoid(beta_density(grid, 2, 5), grid), torch.tensor(1.0).double(), atol=1e-3, rtol=0
    )


def test_discriminator_trains_its_last_blocks_and_head_only():
    objective = small_objective(DidiInstructConfig(ratio={"blocks": 1}))
    critic = objective.ratio.network
    trainable = {n for n, p in critic.named_parameters() if p.requires_grad}
    assert any("layers.1." in n for n in trainable)
    assert not any("layers.0." in n or "embed" in n for n in trainable)
    z = Canvas.of(torch.randint(2, VOCABULARY, (2, LENGTH)), MASK)
    for _ in range(50):
        critic.refresh()
        critic(z)
    for layer in (critic.head[0], critic.head[2]):  # spectral norm 1 after enough power iterations
        unit = layer.weight.detach() / (layer.weight.detach() @ layer.direction).norm()
        assert abs(float(torch.linalg.matrix_norm(unit, 2)) - 1) < 1e-3
        torch.testing.assert_close(layer(torch.eye(32)) - layer.bias, unit.T)
    assert torch.equal(critic(z), critic(z))  # a pass changes nothing
    assert isinstance(critic, Discriminator)


@pytest.mark.parametrize(
    "config",
    [
        IntegralKLConfig(rollout="one_move", time={"clamp": (0.02, 1.0)}),
        IntegralKLConfig(
            rollout="one_move",
            gradient={"name": "score_function", "group_size": 8},
            time={"clamp": (0.02, 1.0)},
        ),
    ],
    ids=["marginalised", "score function"],
)
def test_training_brings_a_one_step_student_closer_to_its_teacher(config):
    """KL(p_ν(x) ‖ p_θ(x)) of the whole sequence law, exact, falls when the student starts from the teacher."""
    torch.manual_seed(0)
    teacher = TabularDenoiser(4, 3, seed=8, sharpness=2.0).requires_grad_(False)
    student = trainable_copy(teacher)
    objective = config.build(Distillation(teacher, student, MaskedProcess(), 3, teacher))
    optimizers = {p: torch.optim.Adam(objective.networks[p].parameters(), lr=0.02) for p in objective.phases}

    def divergence():
        """Any-order KL: average over orders of the sequence divergence, here in closed form over one order each."""
        from itertools import permutations

        from tests.tabular import all_sequences

        x = all_sequences(3, 3)
        start = says(student, torch.full((1, 3), 3))[0]
        ours = start.expand(27, 3, 4).gather(-1, x[..., None]).squeeze(-1).sum(-1)
        total = 0.0
        for order in permutations(range(3)):
            z, theirs = torch.full_like(x, 3), torch.zeros(27, dtype=torch.float64)
            for i in order:
                theirs = theirs + says(teacher, z)[:, i].gather(-1, x[:, i : i + 1]).squeeze(-1)
                z[:, i] = x[:, i]
            total = total + float((ours.exp() * (ours - theirs)).sum()) / 6
        return total

    with torch.no_grad():
        before = divergence()
    for update in range(60):
        rollout = objective.rollout(batch_of(objective, None, 64), RowStreams(0, (update,), range(64)))
        for phase in objective.phases:
            optimizers[phase].zero_grad()
            (objective.loss(phase, rollout).sum / objective.count(phase, rollout)).backward()
            optimizers[phase].step()
    with torch.no_grad():
        after = divergence()
    assert after < 0.8 * before


def test_states_that_are_used_again_get_the_draws_of_the_student_as_it_is():
    """From each recorded state a new sample, by the law of the weights of now; what the state showed stays."""
    teacher, student, rows = TabularDenoiser(4, 3, 0), TabularDenoiser(4, 3, 1), 30_000
    config = IntegralKLConfig(rollout={"steps": [3], "uses": 2})
    objective = config.build(Distillation(teacher, student, MaskedProcess(), 3, teacher))
    streams = RowStreams(0, (0,), range(rows))
    first = objective.rollout(batch_of(objective, None, rows), streams)
    with torch.no_grad():
        student.table.add_(torch.randn(student.table.shape, generator=torch.Generator().manual_seed(7)).double())
    again = objective.again(first, streams)
    state, open_ = again.states[:, 0], again.revealed[:, 0]
    assert objective.uses == 2
    assert torch.equal(state, first.states[:, 0])
    assert torch.equal(again.sample[~open_], state[~open_])
    law = says(student, state).exp()  # (rows, 3, 4)
    drawn = torch.nn.functional.one_hot(again.sample, 4)
    for i in range(3):
        at = open_[:, i] & (state == state[open_[:, i]][0]).all(1)  # one state among many
        assert at.sum() > 500
        torch.testing.assert_close(drawn[at, i].double().mean(0), law[at, i].mean(0), rtol=0, atol=0.05)
    # a corruption of its own too, of the new sample
    assert not torch.equal(again.fake.open, first.fake.open)
    assert torch.equal(again.fake.tokens, torch.where(again.fake.open, 3, again.sample))


def test_states_that_are_used_again_keep_the_real_rows():
    config = IntegralKLConfig(ratio="discriminator", gradient="per_token", rollout={"steps": [2, 4], "uses": 3})
    objective, streams = small_objective(config), RowStreams(0, (0,), range(8))
    again = objective.again(objective.rollout(batch_of(objective, real_rows(8), 8), streams), streams)
    assert again.real is not None
    assert torch.equal(again.real.tokens[~again.real.open], real_rows(8)[~again.real.open])
    assert torch.equal(again.real.open, again.fake.open)


@pytest.mark.parametrize(("horizon", "ahead"), [(1, 1 / 4), (2, 2 / 4), (None, 1)])
def test_nested_corruption_hides_only_what_the_next_steps_could_have_revealed(horizon, ahead):
    objective = small_objective(
        IntegralKLConfig(corruption={"name": "nested", "horizon": horizon}, rollout={"steps": [4]})
    )
    rows = 4000
    rollout = objective.rollout(batch_of(objective, None, rows), RowStreams(0, (3,), range(rows)))
    state, masked = rollout.states[:, 0] == MASK, rollout.fake.tokens == MASK
    assert not (masked & ~state).any()  # the state's own context stays
    share = masked.sum() / state.sum()
    # k = 0…3 uniform, u ~ U: a state of time t = 1 − k/4 has 12·t masks, of which a share 1 − u·min(ahead, t)/t stays
    times = [1 - k / 4 for k in range(4)]
    expected = sum(t - min(ahead, t) / 2 for t in times) / sum(times)
    assert abs(float(share) - expected) < 0.02


def test_exact_share_replaces_the_auxiliary_denoiser():
    """With share 1 the loss is Σ p (log p − log p_θ) whatever the auxiliary says."""
    config = IntegralKLConfig(
        corruption="nested",
        rollout={"steps": [2]},
        gradient={"exact_share": 1.0},
        ratio={"reward_clamp": 50.0},
    )
    teacher, student = TabularDenoiser(4, 3, 0), TabularDenoiser(4, 3, 1)
    objective = config.build(Distillation(teacher, student, MaskedProcess(), 3, teacher))
    rollout = objective.rollout(batch_of(objective, None, 8), RowStreams(0, (4,), range(8)))
    before = objective.loss("student", rollout).sum
    with torch.no_grad():
        objective.ratio.network.table.zero_()
    torch.testing.assert_close(objective.loss("student", rollout).sum, before)
    expected = torch.zeros((), dtype=torch.float64)
    for z, fake, weight in zip(rollout.states[:, 0], rollout.fake.tokens, rollout.weight.double(), strict=True):
        ours, theirs = says(student, z[None])[0, :, :3], says(teacher, fake[None])[0, :, :3]
        divergence = (ours.exp() * (ours - theirs)).sum(-1)
        expected = expected + weight / 3 * divergence[fake == 3].sum()
    torch.testing.assert_close(before, expected, rtol=1e-6, atol=1e-8)


def test_exact_share_needs_nested_corruption():
    with pytest.raises(ValueError, match=r"exact_share is 0\.5"):
        IntegralKLConfig(gradient={"exact_share": 0.5})
