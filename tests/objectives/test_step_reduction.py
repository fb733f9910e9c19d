"""Step reduction: its gradient against enumeration, its parts by hand, and a policy that learns when to hurry."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml

from distill.config import DistillConfig, validate
from objectives.gradients import advantage_to_go
from objectives.objective import Distillation, one_prompt_a_group
from objectives.redi import RediConfig
from objectives.step_reduction import (
    StepReductionConfig,
    StepReductionRollout,
    ramp,
)
from objectives.verifiers import at_the_end, causal_log_likelihood, common_masks, masked_log_likelihood, path_log_ratio
from students.adaptive import adaptive, mean_inverse_distance
from students.planner import PlannedDenoiser, add_planner, summary, surroundings
from students.samplers import Planner, Threshold
from students.samplers.threshold import confident
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, prompted, says
from tests.students.test_planner import SHAPE, chance_of_commits, small_model
from tests.tabular import TabularDenoiser, all_patterns, all_sequences

ROOT = Path(__file__).parents[2]
LENGTH, MASK = 8, 1
PLANNER = Planner()


def small_objective(sampler=PLANNER, **settings):
    torch.manual_seed(2)
    teacher = small_model().requires_grad_(False)
    student = trainable_copy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1 * torch.randn_like(p))
    config = StepReductionConfig(**{"steps": 4, "group_size": 2, **settings})
    objective = config.build(Distillation(teacher, student, MaskedProcess(), LENGTH, teacher, sampler))
    with torch.no_grad():
        for p in objective.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return objective


def real_rows(rows):
    return torch.randint(2, 11, (rows, LENGTH), generator=torch.Generator().manual_seed(5))


THRESHOLD = 0.25
KINDS = {
    "planner alone": {},
    "all": {"trains": "all"},
    "threshold": {"trains": "all", "sampler": Threshold(threshold=THRESHOLD)},
    "teacher's likelihood": {"verifier": "teacher", "verifier_masks": 2},
    "own path": {"verifier": "own_path"},
    "discriminator": {"verifier": "discriminator", "discriminator_blocks": 1, "advantage": "grouped"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_does_not_depend_on_how_the_batch_is_split_and_each_phase_has_its_own_network(kind):
    objective = small_objective(**KINDS[kind])
    rollout = objective.rollout(batch_of(objective, real_rows(8), 8), RowStreams(0, (0,), range(8)))
    for phase in objective.phases:
        network, gradients = objective.networks[phase], []
        for size in (8, 2):
            network.zero_grad()
            for start in range(0, 8, size):
                out = objective.loss(phase, rollout.rows(slice(start, start + size)))
                (out.sum / objective.count(phase, rollout)).backward()
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
            for other in set(objective.phases) - {phase}:
                assert all(p.grad is None for p in objective.networks[other].parameters())
        assert any(g.abs().max() > 0 for g in gradients[0])
        for one, many in zip(*gradients, strict=True):
            torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-6)
        network.zero_grad()
    trained = {n for n, p in objective.student.named_parameters() if p.requires_grad}
    if kind == "planner alone":
        assert trained == {n for n, _ in objective.student.named_parameters() if n.startswith("planner.")}
    assert not any(p.requires_grad for p in objective.target.parameters())
    parts = [
        objective.rollout(batch_of(objective, real_rows(8)[rows], 4), RowStreams(0, (0,), range(8)[rows]))
        for rows in (slice(0, 4), slice(4, 8))
    ]
    for name in ("states", "sample", "advantage"):
        whole = getattr(rollout, name)
        torch.testing.assert_close(torch.cat([getattr(part, name) for part in parts]), whole, rtol=1e-4, atol=1e-5)


def every_trajectory(objective, steps, length, mask_id):
    """All trajectories of ``length`` tokens: their states, commits, samples and numbers of passes."""
    found = []

    def go(state, states, commits):
        masked = [i for i, token in enumerate(state) if token == mask_id]
        if not masked:
            found.append((states, commits, state))
            return
        for chosen in all_patterns(len(masked)).tolist():
            last = len(states) + 1 == steps
            if not any(chosen) or (last and not all(chosen)):
                continue
            here = [i for i, c in zip(masked, chosen, strict=True) if c]
            for tokens in all_sequences(mask_id, len(here)).tolist():
                new = list(state)
                for i, token in zip(here, tokens, strict=True):
                    new[i] = token
                go(new, [*states, state], [*commits, [i in here for i in range(length)]])

    go([mask_id] * length, [], [])
    made = torch.tensor([len(states) for states, _, _ in found])
    samples = torch.tensor([sample for _, _, sample in found])
    states = torch.tensor([[*s, *[sample] * (steps - len(s))] for s, _, sample in found])
    commits = torch.tensor([[*c, *[[False] * length] * (steps - len(c))] for _, c, _ in found])
    return states, commits, samples, made


def by_hand(student, states, commits, samples, made, steps, mask_id):
    """P(τ) of each trajectory, multiplied out pass by pass, differentiable: (N,)."""
    chances = []
    for row in range(len(states)):
        chance = torch.ones((), dtype=torch.float64)
        for n in range(int(made[row])):
            z, commit = states[row, n : n + 1], commits[row, n]
            masked = z == mask_id
            log_probs = says(student, z)
            features = student.features(Canvas.of(z, mask_id), masked)
            logits = student.commit_logits(features, summary(log_probs[masked]), surroundings(masked))
            if n + 1 < steps:
                places, known = (x[0].nonzero().squeeze(1).tolist() for x in (masked, ~masked))
                chosen = commit[masked[0]].tolist()
                chance = chance * chance_of_commits(logits, places, chosen, known, student.repulsion)
            for i in commit.nonzero().squeeze(1).tolist():
                chance = chance * log_probs[0, i, samples[row, i]].exp()
        chances.append(chance)
    return torch.stack(chances)


@pytest.mark.parametrize("trains", ["planner", "all"])
def test_policy_gradient_is_that_of_the_expected_reward_by_enumeration(trains):
    """Σ_τ P(τ) ∇loss(τ) = −∇ Σ_τ P(τ) R(τ): 2 tokens, 3 positions, at most 2 passes; with a baseline as without."""
    torch.manual_seed(0)
    student = add_planner(TabularDenoiser(3, 3, 0), 2, width=3).double()
    with torch.no_grad():
        for p in student.planner.parameters():
            p.copy_(0.5 * torch.randn(p.shape))
    config = StepReductionConfig(steps=2, group_size=2, trains=trains, anchor_kl=0.0)
    teacher = TabularDenoiser(3, 3, 1)
    objective = config.build(Distillation(teacher, student, MaskedProcess(), 3, teacher, PLANNER))
    states, commits, samples, made = every_trajectory(objective, 2, 3, 2)
    chances = by_hand(student, states, commits, samples, made, 2, 2)
    assert float(chances.detach().sum()) == pytest.approx(1)
    reward = (
        torch.randn(8, generator=torch.Generator().manual_seed(3)).double()[samples @ torch.tensor([1, 2, 4])] - made
    )
    trained = [p for p in student.parameters() if p.requires_grad]
    exact = torch.autograd.grad(-(chances * reward).sum(), trained)
    for baseline in (0.0, 0.7):
        rows = len(chances)
        weight = chances.detach() * (reward - baseline)
        canvas, nothing = Canvas.blank(rows, 3, 2), torch.zeros(rows).double()
        rollout = StepReductionRollout(canvas, states, commits, samples, made, weight[:, None].expand(-1, 2), nothing)
        found = torch.autograd.grad(objective.loss("student", rollout).sum, trained)
        for one, other in zip(exact, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert max(float(g.abs().max()) for g in exact) > 1e-2
    assert len(trained) == (6 if trains == "all" else 5)


@pytest.mark.parametrize("verifier", ["teacher", "teacher_path"])
def test_shared_draws_and_marginalised_verdicts_leave_the_planners_gradient_unbiased(verifier):
    """The mean of many rollouts' gradients is the exact one, to 4 standard errors."""
    torch.manual_seed(1)
    student = add_planner(TabularDenoiser(3, 2, 0, 2.0), 2, width=2).double()
    config = StepReductionConfig(
        steps=2, group_size=4, surrogate=0.0, length_warmup=0.0, verifier=verifier, verifier_masks=1, length_weight=1.0
    )
    teacher = TabularDenoiser(3, 2, 1, 2.0)
    objective = config.build(Distillation(teacher, student, MaskedProcess(), 2, teacher, PLANNER))
    bias = student.planner.out.bias
    per_update = []
    for update in range(30):
        rollout = objective.rollout(batch_of(objective, None, 100), RowStreams(0, (update,), range(100)))
        per_update.append(torch.autograd.grad(objective.loss("student", rollout).sum / 100, bias)[0])
    found = torch.stack(per_update).squeeze(1)
    states, commits, samples, made = every_trajectory(objective, 2, 2, 2)
    chances = by_hand(student, states, commits, samples, made, 2, 2)
    with torch.no_grad():
        verdict = path_by_hand(teacher, student, states, commits, samples, made)
        if verifier == "teacher":  # the verifier's sets: sizes uniform on 1 … L, positions uniform
            verdict = torch.zeros(len(made), dtype=torch.float64)
            for masked in all_patterns(2)[1:]:
                sets = masked.expand(len(made), 1, 2)
                part = masked_log_likelihood(teacher, Canvas.blank(*samples.shape, 2), samples, sets, MaskedProcess())
                verdict += part / 2 / math.comb(2, int(masked.sum()))
    reward = verdict - config.length_weight * made / objective.pass_cost.start(torch.device("cpu"))[0]
    exact = torch.autograd.grad(-(chances * reward).sum(), bias)[0]
    error = float(found.std() / len(found) ** 0.5)
    assert float(found.mean()) == pytest.approx(float(exact), abs=4 * error)
    assert abs(float(exact)) > 6 * error, "too noisy to tell"


def path_by_hand(teacher, student, states, commits, samples, made, greedy=False):
    """log p_teacher(τ's tokens, each set in the mean over orders) − log p_ν(them): (N,) nats a token, 2 positions.

    A greedy draw is sure of its tokens: the second term is 0.
    """
    verdict = torch.zeros(len(made), dtype=torch.float64)
    for row in range(len(made)):
        for n in range(int(made[row])):
            z, places = states[row, n : n + 1], commits[row, n].nonzero().squeeze(1).tolist()
            hit = [(samples[row, i], i) for i in places]
            for order in permutations(hit):
                canvas = z.clone()
                for token, i in order:
                    theirs, ours = says(teacher, canvas)[0, i, token], says(student, z)[0, i, token]
                    verdict[row] += (theirs - (0 if greedy else ours)) / math.factorial(len(places)) / 2
                    canvas[0, i] = token
    return verdict


@torch.no_grad()
@pytest.mark.parametrize(("marginalise", "draw"), [(False, "exact"), (True, "exact"), (True, "greedy")])
def test_path_log_ratio_is_by_enumeration_what_it_estimates(marginalise, draw):
    torch.manual_seed(0)
    greedy = draw == "greedy"
    student, teacher = add_planner(TabularDenoiser(3, 2, 0, 2.0), 2).double(), TabularDenoiser(3, 2, 1, 2.0)
    canvas = Canvas.blank(800, 2, 2)
    found = adaptive(student, MaskedProcess(), canvas, Planner(draw=draw), 2, RowStreams(0, (0,), range(800)))

    def ratios(teacher):
        streams = RowStreams(0, (1,), range(800))
        return path_log_ratio(teacher, student, canvas, found, streams, 1, MaskedProcess(), marginalise, greedy=greedy)

    estimate = ratios(teacher).sum(1)
    exact = path_by_hand(teacher, student, found.states, found.commits, found.sample, found.steps, greedy)
    assert float(estimate.mean()) == pytest.approx(float(exact.mean()), abs=4 * float((estimate - exact).std()) / 28)
    if greedy:
        return
    same = ratios(student)
    alone = found.commits.sum(-1) == 1
    assert same[alone].abs().max() < 1e-12, "a student that is its teacher loses nothing where it commits one by one"


@pytest.mark.parametrize(("verifier", "nothing"), [("own_path", True), ("teacher_path", False)])
def test_own_path_charges_what_is_committed_at_once_and_not_how_far_the_teacher_is(verifier, nothing):
    objective = small_objective(verifier=verifier, steps=LENGTH)
    objective.target.load_state_dict(objective.student.state_dict())
    for bias, alone in ((-50.0, True), (2.0, False)):
        with torch.no_grad():
            objective.student.planner.out.bias.fill_(bias)
        rollout = objective.rollout(batch_of(objective, None, 8), RowStreams(0, (0,), range(8)))
        assert bool((rollout.commits.sum(-1) == 1).all()) == alone
        assert bool((rollout.verdict.abs() < 1e-6).all()) == (nothing and alone)


def test_kept_features_are_what_the_student_would_compute_again():
    objective = small_objective(**KINDS["planner alone"])
    with torch.no_grad():
        objective.student.planner.out.weight.normal_()
    kept = objective.rollout(batch_of(objective, None, 8), RowStreams(0, (1,), range(8)))
    again = replace(kept, features=None)
    torch.testing.assert_close(objective.loss("student", kept).sum, objective.loss("student", again).sum)
    first, second = (
        path_log_ratio(
            objective.teacher, objective.student, kept.canvas, way, RowStreams(0, (2,), range(8)), 4, MaskedProcess(),
            True,
        )
        for way in (kept.path, again.path)
    )  # fmt: skip
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    assert kept.features.abs().sum() > 0


@pytest.mark.parametrize("name", ["planner alone", "threshold"])
def test_a_rollout_that_is_used_again_is_weighted_by_how_likely_it_has_become(name):
    config, batch = {**KINDS[name], "anchor_kl": 0.0}, RowStreams(0, (1,), range(8))
    objective = small_objective(**config, uses=3, ratio_clip=0.05, steps=LENGTH)  # some passes are made by no row
    rollout = objective.rollout(batch_of(objective, None, 8), batch)
    # 1. at first its gradient is that of a rollout that is used once
    trained = [p for p in objective.student.parameters() if p.requires_grad]
    first = torch.autograd.grad(objective.loss("student", rollout).sum, trained, allow_unused=True)
    once = torch.autograd.grad(
        objective.loss("student", replace(rollout, log_prob=None)).sum, trained, allow_unused=True
    )
    for one, other in zip(first, once, strict=True):
        torch.testing.assert_close(one, other)
    # 2. later it is that of the clipped objective
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    again = objective.again(rollout, batch)
    out, surrogate = objective.loss("student", again), torch.zeros(()).double()
    for n in range(objective.config.steps):
        part, moved, _ = objective.policy.terms(rollout.path, rollout.canvas, n)
        ratio, advantage = (moved - rollout.log_prob[part, n]).exp(), rollout.advantage[part, n]
        surrogate = surrogate - torch.minimum(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage).sum()
    found, expected = (torch.autograd.grad(x, trained, allow_unused=True) for x in (out.sum, surrogate))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert 0 < out.metrics["clipped"][0] < 8


def test_threshold_policy_scores_its_tokens_alone():
    objective = small_objective(**KINDS["threshold"], anchor_kl=0.5)
    rollout = objective.rollout(batch_of(objective, None, 4), RowStreams(0, (1,), range(4)))
    expected, student, target = torch.zeros(()), objective.student, objective.target
    for row in range(4):
        gain, away = 0.0, 0.0
        for n in range(int(rollout.steps[row])):
            z = rollout.states[row, n : n + 1]
            masked, log_probs = z == MASK, says(student, z)
            if n < 3:
                wanted = confident(log_probs[masked].amax(-1), masked, THRESHOLD)
                assert torch.equal(wanted[0], rollout.commits[row, n])
            hit = log_probs[0].gather(-1, rollout.sample[row][:, None]).squeeze(-1)
            gain = gain + rollout.advantage[row, n] * hit[rollout.commits[row, n]].sum()
            ours, theirs = (x[masked][:, torch.arange(11) != MASK] for x in (log_probs, says(target, z)))
            away = away + (ours.exp() * (ours - theirs)).sum(-1).mean()
        expected = expected - gain + 0.5 * away / rollout.steps[row]
    torch.testing.assert_close(objective.loss("student", rollout).sum, expected.double(), rtol=1e-4, atol=1e-5)
    assert (rollout.steps > 1).all()


def levenshtein(a, b):
    """Plain dynamic programme."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


@torch.no_grad()
def test_surrogate_is_the_mean_inverse_edit_distance():
    torch.manual_seed(0)
    student = add_planner(TabularDenoiser(3, 5, 0), 4)
    found = adaptive(student, MaskedProcess(), Canvas.blank(30, 5, 2), PLANNER, 5, RowStreams(0, (0,), range(30)))
    lengths = mean_inverse_distance(found.commits, found.steps)
    for row in range(30):
        path = [*found.states[row, : found.steps[row]].tolist(), found.sample[row].tolist()]
        pairs = [1 / levenshtein(a, b) for i, a in enumerate(path) for b in path[i + 1 :]]
        assert float(lengths[row]) == pytest.approx(sum(pairs) / len(pairs))
    assert len(set(found.steps.tolist())) > 1


def test_length_goes_from_surrogate_to_passes_and_its_weight_rises():
    objective = small_objective(surrogate=0.5, length_warmup=0.2, length_weight=0.4)
    rollout = objective.rollout(batch_of(objective, None, 4), RowStreams(0, (3,), range(4)))
    steps, surrogate = objective.pass_cost.start(torch.device("cpu"))
    lengths = mean_inverse_distance(rollout.commits, rollout.steps) / surrogate
    for update, share in ((0, 0.0), (25, 0.5), (50, 1.0), (90, 1.0)):
        assert objective.begin(update, 100) is False
        cost = objective.cost(rollout.path)
        torch.testing.assert_close(cost.sum(1), share * rollout.steps / steps + (1 - share) * lengths)
        assert (cost[:, 0] >= share / steps - 1e-9).all(), "a pass costs when it is made"
    assert ramp(0.0, 0.2) == 0
    assert ramp(0.1, 0.2) == 0.5
    assert ramp(0.0, 0.0) == ramp(0.9, 0.2) == 1
    worth = None
    for update, weight in ((0, 0.0), (60, 0.4)):
        objective.begin(update, 100)
        found = objective.rollout(batch_of(objective, None, 4), RowStreams(0, (3,), range(4)))
        paid = found.advantage + weight * advantage_to_go(objective.cost(found.path), found.steps, 2)
        worth = paid if worth is None else worth
        torch.testing.assert_close(paid, worth)


def test_advantage_is_what_follows_above_the_others_that_go_on():
    reward = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    found = advantage_to_go(reward, torch.tensor([3, 2, 1]), 3)
    expected = [[7 - 4.5, 6 - 1.0, 4.0], [4 - 6.0, 1 - 6.0, 0.0], [5 - 5.5, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))
    ends = at_the_end(torch.tensor([7.0, 8.0]), torch.tensor([1, 3]), 3)
    assert ends.tolist() == [[7.0, 0.0, 0.0], [0.0, 0.0, 8.0]]


@torch.no_grad()
def test_masked_likelihood_is_the_elbo_and_masks_are_common_to_a_group():
    masks = common_masks(RowStreams(0, (0,), range(6)), torch.ones(6, 4).bool(), 3, 2)
    assert torch.equal(masks[0::2], masks[1::2])
    assert not torch.equal(masks[0], masks[2])
    sizes = common_masks(RowStreams(0, (1,), range(3000)), torch.ones(3000, 4).bool(), 2, 1).sum(-1)
    assert (sizes[:, 0] <= 2).all()
    assert (sizes[:, 1] >= 3).all()
    assert torch.bincount(sizes.flatten(), minlength=5)[1:].double().div(6000).sub(0.25).abs().max() < 0.02
    teacher, x = TabularDenoiser(3, 3, 0, 2.0), torch.tensor([[0, 1, 1]])
    elbo, average = 0.0, 0.0
    for masked in all_patterns(3)[1:]:
        size = int(masked.sum())
        nats = -says(teacher, torch.where(masked, 2, x))[0, masked].gather(-1, x[0, masked][:, None]).sum()
        # ∫ (1/t) t^k (1−t)^(L−k) dt = (k−1)! (L−k)! / L!
        elbo += float(nats) * math.factorial(size - 1) * math.factorial(3 - size) / math.factorial(3)
        found = masked_log_likelihood(teacher, Canvas.blank(1, 3, 2), x, masked[None, None], MaskedProcess())
        average += float(found) / math.comb(3, size) / 3
    assert -average == pytest.approx(elbo / 3)


def test_judge_scores_left_to_right_and_must_fit(tmp_path):
    torch.manual_seed(0)
    spec = DenoiserSpec(MASK, 11, LENGTH, shift=True, attention="causal")
    create_denoiser("qwen3", SHAPE, spec).save(tmp_path / "judge")
    small_model().save(tmp_path / "denoiser")
    objective = small_objective(verifier="judge", judge=str(tmp_path / "judge"))
    rollout = objective.rollout(batch_of(objective, None, 2), RowStreams(0, (0,), range(2)))
    judge = objective.verifier.judge
    expected = says(judge, rollout.sample)[:, 1:].gather(-1, rollout.sample[:, 1:, None]).mean((1, 2))
    torch.testing.assert_close(rollout.verdict, expected.double(), rtol=1e-4, atol=1e-5)
    changed = rollout.sample.clone()
    changed[:, 0] = 9
    other = causal_log_likelihood(judge, rollout.canvas, changed)
    assert not torch.equal(other, rollout.verdict), "the first is context"
    with pytest.raises(UserError, match="give an autoregressive model"):
        small_objective(verifier="judge", judge=str(tmp_path / "denoiser"))


class Pairs(TabularDenoiser):
    """Three positions: independent fair coins, or copies of one coin but for a mistake in a hundred."""

    def __init__(self, copies):
        super().__init__(3, 3, 0)
        with torch.no_grad():
            self.table.zero_()
            for z in torch.cartesian_prod(*[torch.arange(3)] * 3):
                seen = z[z != 2]
                if copies and len(seen):
                    self.table[(z * self.place).sum(), :, seen[0]] = math.log(99)


@pytest.mark.parametrize("copies", [False, True])
def test_planner_learns_to_hurry_where_tokens_are_independent_and_only_there(copies):
    torch.manual_seed(0)
    teacher = Pairs(copies).requires_grad_(False)
    config = StepReductionConfig(steps=3, length_weight=0.1, surrogate=0.2, length_warmup=0.0)
    objective = config.build(Distillation(teacher, trainable_copy(teacher), MaskedProcess(), 3, teacher, PLANNER))
    assert isinstance(objective.student, PlannedDenoiser)
    optimizer = torch.optim.Adam([p for p in objective.student.parameters() if p.requires_grad], lr=0.1)
    verdicts = []
    for update in range(40):
        objective.begin(update, 40)
        rollout = objective.rollout(batch_of(objective, None, 64), RowStreams(0, (update,), range(64)))
        optimizer.zero_grad()
        (objective.loss("student", rollout).sum / 64).backward()
        optimizer.step()
        verdicts.append(float(rollout.verdict.mean()))
    before = objective.pass_cost.start(torch.device("cpu"))[0]
    canvas, streams = Canvas.blank(400, 3, 2), RowStreams(1, (), range(400))
    after = adaptive(objective.student, MaskedProcess(), canvas, PLANNER, 3, streams)
    passes = float(after.steps.double().mean())
    if not copies:
        assert passes < 1.1 < before - 0.5
    else:  # two passes write copies as well as three do; one does not
        first = after.commits[:, 0].sum(1)
        assert float((first == 1).double().mean()) > 0.9
        assert passes > 1.9
        assert sum(verdicts[-5:]) / 5 > sum(verdicts[:5]) / 5


@torch.no_grad()
def test_a_group_is_behind_one_prompt_and_rows_without_prompts_are_as_they_were():
    objective = small_objective(steps=LENGTH, group_size=2)
    open_ = torch.arange(LENGTH).expand(4, LENGTH) > 2
    batch = prompted(batch_of(objective, real_rows(4), 4), open_)
    canvas = objective.rollout(batch, RowStreams(0, (0,), range(4))).canvas
    assert torch.equal(canvas.tokens[:, :3], batch.labels[[0, 0, 2, 2], :3])
    whole = batch_of(objective, real_rows(4), 4)
    assert one_prompt_a_group(whole, 2) is whole


def test_config_asks_for_a_critic_and_for_the_sampler_that_is_trained():
    base = yaml.safe_load((ROOT / "configs" / "step_reduction.yaml").read_text("utf-8"))
    base["student"] = {"init": "bundled:teacher"}
    assert validate(DistillConfig, base).objective.phases == ("student",)

    def refused(match, sampler="planner", evaluate=None, **objective):
        values = {**base, "sampler": sampler, "objective": {**base["objective"], **objective}}
        values["evaluate"] = {**base["evaluate"], **(evaluate or {})}
        with pytest.raises(UserError, match=match):
            validate(DistillConfig, values)

    refused(r"train\.critic is missing", verifier="discriminator")
    refused(r"sampler is 'ancestral', but step_reduction trains one that decides.*sampler=planner", sampler="ancestral")
    refused(r"passes of 'planner' are trained; leave evaluate\.sampler out", evaluate={"sampler": "ancestral"})
    refused(r"has no planner to train; set objective\.trains=all", sampler="threshold")
    refused(r"not blind to what it draws", sampler={"name": "threshold", "confidence": "drawn"}, trains="all")
    refused(r"draw exactly at temperature 1", sampler={"name": "planner", "draw": "greedy"}, trains="all")
    refused(r"draw exactly at temperature 1", sampler={"name": "planner", "temperature": 0.5})
    refused(r"leave its confidence, draw, temperature, top_k", sampler={"name": "planner", "top_p": 0.9})
    refused(r"blocks of 8' plans blocks, .* whole rows", sampler={"name": "planner", "block_length": 8})
    blocks = {"name": "threshold", "block_length": 8, "budget": "block"}
    refused(r"budget is 'block', but step_reduction counts the passes of a row", sampler=blocks, trains="all")
    refused(r"objective\.steps has 200, more steps than the 32", steps=200)
    refused(r"policy is now the run's sampler; write sampler", policy="threshold")
    refused(r"threshold is now the run's sampler\.threshold", threshold=0.8)


def test_the_fewest_passes_at_the_starts_perplexity_are_the_best():
    start = {"relative_perplexity": 1.0, "nfe": 16.0}
    config = StepReductionConfig()
    assert config.ranks({"relative_perplexity": 1.01, "nfe": 9.0}, start) == 9.0
    assert config.ranks({"relative_perplexity": 1.03, "nfe": 8.0}, start) is None
    assert RediConfig().ranks({"relative_perplexity": 1.03, "nfe": 8.0}, None) == 1.03
    objective = small_objective()
    assert objective.reference is objective.target is objective.networks["target"]
