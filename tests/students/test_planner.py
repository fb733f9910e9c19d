"""The planner: its law against enumeration, where it starts, that it is saved and loaded, and confidence thresholds."""

from __future__ import annotations

import math

import pytest
import torch

from students.adapters import AdaptedDenoiser, AdapterConfig, merged
from students.adaptive import adaptive
from students.fill import fill
from students.planner import (
    PLANNER_FILE,
    PlannedDenoiser,
    PlannerHead,
    add_planner,
    base_logits,
    commit_log_prob,
    draw_commits,
    load_planned,
    summary,
    surroundings,
)
from students.samplers import Planner, Threshold
from students.samplers.threshold import confident
from students.student import twin
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.stock.loading import create_denoiser, load_model
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform
from tests.networks import shape
from tests.tabular import TabularDenoiser, all_patterns, all_sequences

SHAPE = shape(intermediate_size=16)
CHI_SQUARE_7, CHI_SQUARE_14 = 29.9, 42.6  # 99.99 % quantiles; the seeds are fixed, so a pass is a pass


def planned_table(length=3, vocabulary=3, seed=0, scale=1.0):
    """A tabular denoiser whose planner is not where it starts."""
    torch.manual_seed(seed)
    denoiser = add_planner(TabularDenoiser(vocabulary, length, seed, 1.5), 2, width=4).double()
    with torch.no_grad():
        for p in (*denoiser.planner.out.parameters(), denoiser.planner.repulsion):
            p.copy_(scale * torch.randn(p.shape))
        denoiser.planner.repulsion.mul_(3).abs_()  # likelier together, or two tokens would never be
    return denoiser


def small_model(length=8, vocabulary=11, mask=1):
    return create_denoiser("qwen3", SHAPE, DenoiserSpec(mask, vocabulary, length)).eval()


def chance_of_commits(logits, places, chosen, known, repulsion):
    """P(S), position by position from left to right: logits, places and choices of the masked, places of the known."""
    chance, last = torch.ones((), dtype=logits.dtype), None
    for logit, place, c in zip(logits, places, chosen, strict=True):
        if last is not None and place - last <= repulsion.shape[1]:
            logit = logit + repulsion[int(any(last < k < place for k in known)), place - last - 1]
        chance = chance * torch.sigmoid(logit if c else -logit)
        last = place if c else last
    return chance / (1 - torch.sigmoid(-logits).prod())


def exact_law(denoiser, steps):
    """The law of the planner sampler on V−1 tokens, by summing over trajectories; means of passes and of log q."""
    length, mask_id = denoiser.spec.max_length, denoiser.spec.mask_id
    law, mean, log_q = {}, 0.0, 0.0
    states = {(mask_id,) * length: 1.0}
    for n in range(steps):
        after = {}
        for state, mass in states.items():
            canvas = Canvas.of(torch.tensor([state]), mask_id)
            masked = canvas.open
            mean += mass
            log_probs = denoiser.log_probs(canvas)
            features = denoiser.features(canvas, masked)
            logits = denoiser.commit_logits(features, summary(log_probs[masked]), surroundings(masked))
            places, known = (x[0].nonzero().squeeze(1).tolist() for x in (masked, ~masked))
            for chosen in all_patterns(len(places)).tolist():
                if n + 1 < steps:
                    chance = float(chance_of_commits(logits, places, chosen, known, denoiser.repulsion)) * any(chosen)
                else:
                    chance = float(all(chosen))
                if chance == 0:
                    continue
                here = [i for i, c in zip(places, chosen, strict=True) if c]
                for tokens in all_sequences(mask_id, len(here)).tolist():
                    new, nats = list(state), 0.0
                    for i, token in zip(here, tokens, strict=True):
                        new[i], nats = token, nats + float(log_probs[0, i, token])
                    probability = chance * math.exp(nats)
                    log_q += mass * probability * nats
                    where = law if mask_id not in new else after
                    where[tuple(new)] = where.get(tuple(new), 0.0) + mass * probability
        states = after
    return law, mean, log_q


def chi_square(tokens, law):
    seen = {}
    for row in tokens.tolist():
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert set(seen) <= set(law)
    return sum((seen.get(row, 0) - p * len(tokens)) ** 2 / (p * len(tokens)) for row, p in law.items())


@pytest.mark.parametrize("steps", [2, 3])
@torch.no_grad()
def test_sampler_and_recorded_trajectories_have_the_law_of_the_enumeration(steps):
    denoiser = planned_table(scale=0.2)
    law, mean, log_q = exact_law(denoiser, steps)
    assert sum(law.values()) == pytest.approx(1)
    canvas = Canvas.blank(20_000, 3, denoiser.spec.mask_id)
    out = fill(denoiser, canvas, Planner(), steps, torch.Generator().manual_seed(1))
    some, streams = canvas.rows(slice(0, 5000)), RowStreams(0, (1,), range(5000))
    found = adaptive(denoiser, MaskedProcess(), some, Planner(), steps, streams)
    for tokens, passes in ((out.tokens, out.nfe), (found.sample, found.steps)):
        assert chi_square(tokens, law) < CHI_SQUARE_7
        assert float(passes.double().mean()) == pytest.approx(mean, abs=0.03)
    assert 1.2 < mean < steps - 0.05, "the case is trivial"
    error = float(out.log_prob.std()) / math.sqrt(len(canvas))
    assert float(out.log_prob.mean()) == pytest.approx(log_q, abs=4 * error)
    assert log_q > sum(p * math.log(p) for p in law.values()) + 5 * error, "no bound on a divergence of the texts' law"
    other = planned_table(seed=1, scale=0.2)
    assert chi_square(out.tokens, exact_law(other, steps)[0]) > 10 * CHI_SQUARE_7


def test_surroundings_are_share_nearness_and_place():
    masked = torch.tensor([[True, True, False, True, True, True, False, True]])
    share, left, right, *waves = surroundings(masked).T
    assert share.tolist() == [6 / 8] * 6
    torch.testing.assert_close(left, torch.tensor([0, 0, 1, 1 / 2, 1 / 3, 1]).to(left))
    torch.testing.assert_close(right, torch.tensor([1 / 2, 1, 1 / 3, 1 / 2, 1, 0]).to(right))
    place = masked[0].nonzero().squeeze(1)
    torch.testing.assert_close(waves[0], (-1.0) ** place.double())
    assert len({tuple(wave) for wave in torch.stack(waves, 1).tolist()}) == 6, "16 places look different"
    assert torch.isfinite(surroundings(torch.ones(2, 1, dtype=torch.bool))).all()


@pytest.mark.parametrize("repels", [False, True])
def test_commits_have_the_law_that_is_written_down_given_that_there_are_some(repels):
    logits, masked = torch.tensor([[-1.0, 0.5, 3.0, -2.0, 0.0]]), torch.tensor([[True, True, False, True, True]])
    repulsion = torch.tensor([[-2.0, 1.0], [0.5, -3.0]])  # two tokens far, and so nothing for three
    given = repulsion if repels else None
    patterns = all_patterns(5)
    patterns = patterns[~patterns[:, 2] & patterns.any(1)]
    expanded = (x.expand(len(patterns), -1) for x in (logits, masked))
    law = commit_log_prob(*expanded, patterns, given).exp()
    assert float(law.sum()) == pytest.approx(1)
    for pattern, chance in zip(patterns, law, strict=True):
        chosen = pattern[masked[0]].tolist()
        by_hand = chance_of_commits(logits[masked], [0, 1, 3, 4], chosen, [2], repulsion * repels)
        torch.testing.assert_close(chance, by_hand)
    rows = 20_000
    drawn = draw_commits(
        logits.expand(rows, -1), masked.expand(rows, -1), uniform(torch.Generator().manual_seed(0), rows, 6), given
    )
    seen = torch.stack([(drawn == pattern).all(1).sum() for pattern in patterns]).double()
    assert int(seen.sum()) == rows
    assert float(((seen - rows * law) ** 2 / (rows * law)).sum()) < CHI_SQUARE_14


def test_rows_without_masks_and_certain_planners_are_no_trouble():
    logits = torch.tensor([[-80.0, -80.0], [80.0, 80.0], [0.0, 0.0]], requires_grad=True)
    masked = torch.tensor([[True, True], [True, True], [False, False]])
    commit = draw_commits(logits, masked, torch.full((3, 3), 0.25, dtype=torch.float64))
    assert commit.tolist() == [[True, False], [True, True], [False, False]]
    log_prob = commit_log_prob(logits.double(), masked, commit)
    torch.testing.assert_close(log_prob, torch.tensor([math.log(0.5), 0.0, 0.0]).double())
    log_prob.sum().backward()
    assert logits.grad.isfinite().all()


def test_untrained_planner_is_the_ancestral_rate_with_and_without_a_head():
    share = torch.tensor([1.0, 0.5, 0.25, 0.01], dtype=torch.float64)
    rates = base_logits(share, 8).sigmoid()
    torch.testing.assert_close(rates[:3], torch.tensor([1 / 8, 1 / 4, 1 / 2], dtype=torch.float64))
    assert 0.99 < rates[3] < 1, "the head must be able to move it"
    torch.manual_seed(0)
    inner = small_model(64)
    planned = add_planner(inner, 8)
    canvas = Canvas.blank(100, 64, 1)
    with_head, without = (fill(d, canvas, Planner(), 8, torch.Generator().manual_seed(2)) for d in (planned, inner))
    assert torch.equal(with_head.tokens, without.tokens)
    assert torch.equal(with_head.nfe, without.nfe)
    assert 7 < float(with_head.nfe.double().mean()) <= 8
    fewer = fill(planned, canvas, Planner(bias=1.0), 8, torch.Generator().manual_seed(2))
    assert float(fewer.nfe.double().mean()) < 6
    assert (Planner().label, Planner(bias=-0.5).label) == ("planner", "planner, bias -0.5")


def test_planner_that_starts_confident_commits_what_reaches_its_threshold_beside_the_rate():
    head = PlannerHead(4, 8, confidence=0.9)
    where = surroundings(torch.tensor([[True] * 4]))
    p = torch.tensor([0.5, 0.85, 0.9, 0.95])
    summaries = torch.stack([torch.zeros(4), p.log()], 1)
    with torch.no_grad():
        above = head(torch.zeros(4, 4), summaries, where) - base_logits(where[:, 0], 8)
    torch.testing.assert_close(above.float(), 60 * (p / 0.9).log())


def test_threshold_commits_what_reaches_it_and_always_the_most_confident():
    masked = torch.tensor([[True, False, True, True], [True, False, False, True], [False] * 4])
    log_confidence = torch.tensor([0.95, 0.4, 0.9, 0.3, 0.6]).log()
    expected = [[True, False, False, True], [False, False, False, True], [False] * 4]
    assert confident(log_confidence, masked, 0.9).tolist() == expected
    assert Threshold(threshold=0.8, confidence="drawn").label == "threshold 0.8, of the drawn token"


def test_threshold_passes_adapt_and_the_default_does_not_look_at_what_was_drawn():
    canvas = Canvas.blank(400, 3, 2)
    sure = TabularDenoiser(3, 3, 0, sharpness=0.0)
    with torch.no_grad():
        sure.table[..., 0] += 1.5  # probability 0.82 of token 0 at every position
    sample = {}
    for rule in (("largest", 0.9), ("largest", 0.8), ("drawn", 0.8)):
        sampler = Threshold(confidence=rule[0], threshold=rule[1])
        sample[rule] = fill(sure, canvas, sampler, 3, torch.Generator().manual_seed(0))
    assert (sample["largest", 0.9].nfe == 3).all()
    assert (sample["largest", 0.8].nfe == 1).all()
    assert 1 < float(sample["drawn", 0.8].nfe.double().mean()) < 3
    zeros = {key: float((out.tokens == 0).double().mean()) for key, out in sample.items()}
    assert zeros["largest", 0.9] == pytest.approx(0.82, abs=0.04)
    assert zeros["drawn", 0.8] > 0.9, "a token that is drawn again until it is a likely one is sharpened"


@torch.no_grad()
def test_trajectories_record_every_pass_and_do_not_depend_on_the_batch():
    denoiser = planned_table(length=4)

    def trajectories(rows):
        blank = Canvas.blank(len(rows), 4, 2)
        return adaptive(denoiser, MaskedProcess(), blank, Planner(), 3, RowStreams(0, (2,), rows))

    found = trajectories(range(12))
    assert (found.commits.sum(1) == 1).all(), "each position is committed once"
    assert (found.sample != 2).all()
    z = torch.full((12, 4), 2)
    for n in range(3):
        assert torch.equal(found.states[:, n], z)
        z = torch.where(found.commits[:, n], found.sample, z)
    assert torch.equal(found.steps, found.commits.any(2).sum(1))
    assert (found.steps[:, None] > torch.arange(3))[found.commits.any(2)].all()
    alone = trajectories([7])
    assert torch.equal(alone.states[0], found.states[7])
    denoiser.collective = True  # every process makes all passes, whatever its rows need
    calls = []
    features = denoiser.inner.features
    denoiser.inner.features = lambda *args, **kwargs: calls.append(1) or features(*args, **kwargs)
    together = trajectories(range(12))
    assert len(calls) == 3
    assert torch.equal(together.states, found.states)


@torch.no_grad()
def test_saved_planner_comes_back_and_stock_transformers_reads_the_folder(tmp_path):
    torch.manual_seed(0)
    denoiser = add_planner(small_model(), 5)
    for p in denoiser.planner.parameters():
        p.normal_()
    denoiser.save(tmp_path)
    back = load_planned(resolve(str(tmp_path)))
    assert isinstance(back, PlannedDenoiser)
    assert back.planner.base_steps == 5
    for one, other in zip(denoiser.parameters(), back.parameters(), strict=True):
        assert torch.equal(one, other)
    assert load_model(resolve(str(tmp_path))).num_parameters() == sum(p.numel() for p in denoiser.inner.parameters())
    (tmp_path / PLANNER_FILE).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot put planner"):
        load_planned(resolve(str(tmp_path)))
    (tmp_path / PLANNER_FILE).unlink()
    assert not isinstance(load_planned(resolve(str(tmp_path))), PlannedDenoiser)


@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_twins_and_merged_copies_plan_alike(adapted, tmp_path):
    torch.manual_seed(0)
    inner = small_model()
    if adapted:
        inner = AdaptedDenoiser(inner, AdapterConfig(rank=2))
    denoiser = add_planner(inner, 5)
    for p in denoiser.parameters():
        p.add_(0.2 * torch.randn_like(p))
    canvas = Canvas.of(torch.tensor([[1, 4, 1, 1, 7, 1, 2, 1]]), 1)

    def plans(network):
        features = network.features(canvas, canvas.open)
        return network.commit_logits(features, summary(network.head(features)), surroundings(canvas.open))

    copies = [twin(denoiser), merged(denoiser)]
    assert {n for n, _ in denoiser.named_parameters()} == {n for n, _ in copies[0].named_parameters()}
    for copy in copies:
        torch.testing.assert_close(plans(copy), plans(denoiser), rtol=1e-4, atol=1e-5)
        assert not any(p.requires_grad for p in copy.parameters())
        assert torch.equal(copy.repulsion, denoiser.repulsion)
    assert plans(denoiser).std() > 0.01
    assert merged(denoiser, torch.bfloat16).planner.out.weight.dtype == torch.bfloat16
    denoiser.save(tmp_path)
    assert (tmp_path / PLANNER_FILE).is_file()
