"""ReDi: the coupling's law by enumeration, and conditional total correlation over rounds of exact minimisers."""

import itertools
import math

import pytest
import torch

from objectives.objective import Distillation
from objectives.redi import RediConfig
from students.fill import fill
from students.samplers import Ancestral
from students.samplers.random_start import RandomStart
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.tabular import TabularDenoiser, all_sequences

MASK, LENGTH = 2, 2
STARTS, SAMPLES = all_sequences(MASK + 1, LENGTH), all_sequences(MASK, LENGTH)
DATA = torch.tensor([0.45, 0.05, 0.1, 0.4], dtype=torch.float64)


def start_law(share):
    """P(start), (9,): each position masked, or one of the two tokens."""
    chance = torch.tensor([share / 2, share / 2, 1 - share], dtype=torch.float64)
    return chance[STARTS].prod(1)


def total_correlation(coupling):
    """Σᵢ H(xᵢ | start) − H(x | start), nats, of a (9, 4) law of pairs."""

    def conditional_entropy(joint):
        given = joint.sum(1, keepdim=True).expand_as(joint)[joint > 0]
        return -(joint[joint > 0] * (joint[joint > 0] / given).log()).sum()

    marginals = [torch.stack([coupling[:, SAMPLES[:, i] == v].sum(1) for v in range(MASK)], 1) for i in range(LENGTH)]
    return float(sum(conditional_entropy(m) for m in marginals) - conditional_entropy(coupling))


def minimiser(coupling):
    """The cross-entropy's exact minimum: for each state, the law of each undecided position, t uniform."""
    denoiser = TabularDenoiser(MASK + 1, LENGTH, 0)
    weights = torch.full((len(STARTS), LENGTH, MASK), 1e-300, dtype=torch.float64)
    for (a, start), (b, x) in itertools.product(enumerate(STARTS), enumerate(SAMPLES)):
        for undecided in itertools.product((False, True), repeat=LENGTH):
            n = sum(undecided)
            chance = math.factorial(n) * math.factorial(LENGTH - n) / math.factorial(LENGTH + 1)  # ∫ tⁿ (1 − t)^(L − n)
            place = int((torch.where(torch.tensor(undecided), start, x) * denoiser.place).sum())
            for i in range(LENGTH):
                if undecided[i]:
                    weights[place, i, x[i]] += chance * coupling[a, b]
    with torch.no_grad():
        denoiser.table[..., :MASK] = weights.log()
    return denoiser


def rectified(denoiser, share, steps):
    """The law of (start, sample of the K-step sampler): (9, 4), over every order of revealing."""
    law = torch.zeros(len(STARTS), len(SAMPLES), dtype=torch.float64)
    with torch.no_grad():
        tables = {tuple(z.tolist()): says(denoiser, z[None])[0].exp().tolist() for z in STARTS}
    for (a, start), (b, x) in itertools.product(enumerate(STARTS), enumerate(SAMPLES)):
        for when in itertools.product(range(steps), repeat=LENGTH):
            chance = 1.0
            for i in range(LENGTH):  # what the step that reveals i sees: all that earlier steps revealed
                seen = tuple(int(x[j] if when[j] < when[i] else start[j]) for j in range(LENGTH))
                chance *= tables[seen][i][x[i]]
            law[a, b] += chance / steps**LENGTH
    return start_law(share)[:, None] * law


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_total_correlation_falls_from_round_to_round(share, steps):
    coupling = start_law(share)[:, None] * DATA
    found, apart = [total_correlation(coupling)], [0.0]
    for _ in range(3):
        coupling = rectified(minimiser(coupling), share, steps)
        samples = coupling.sum(0)
        apart.append(float((samples * (samples / DATA).log()).sum()))
        torch.testing.assert_close(coupling.sum(1), start_law(share))
        found.append(total_correlation(coupling))
    assert found[0] == pytest.approx(0.2754, abs=1e-4)
    assert found[1] < 0.9 * found[0]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found))
    # what the theorem does not say: each round learns the law of few-step samples, errors included
    assert apart[1] > 0.02
    assert apart[3] > 0.99 * apart[1]
    if steps == 1:
        assert found[1] == pytest.approx(0, abs=1e-9)  # one step: tokens are independent, given the start


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_pairs_have_the_enumerated_law_and_the_loss_its_minimum_at_the_minimiser(share):
    target = minimiser(start_law(share)[:, None] * DATA)
    rows, law = 5000, rectified(target, share, 2)
    config = RediConfig(steps=2, random_share=share)
    student = TabularDenoiser(MASK + 1, LENGTH, 5)
    objective = config.build(Distillation(target, student, MaskedProcess(), LENGTH, target))
    objective.begin(2, 3)
    objective.target = target
    drawn = objective.rollout(batch_of(objective, None, rows), RowStreams(0, (2,), range(rows)))
    place = 3 ** torch.arange(LENGTH)
    order = {int((s * place).sum()): a for a, s in enumerate(STARTS)}
    counts = torch.zeros_like(law)
    for a, b in zip((drawn.start * place).sum(1).tolist(), (drawn.sample @ torch.tensor([2, 1])).tolist(), strict=True):
        counts[order[a], b] += 1
    assert (counts / rows - law).abs().max() < 0.025  # 3.5 standard deviations of a half
    assert torch.equal(drawn.z.tokens, torch.where(drawn.z.open, drawn.start, drawn.sample))
    unpaired = law.sum(1, keepdim=True) * law.sum(0, keepdim=True)
    losses, gradients = {}, {}
    for name, coupling in (("best", law), ("unpaired", unpaired), ("data", start_law(share)[:, None] * DATA)):
        with torch.no_grad():
            student.table.copy_(minimiser(coupling).table)
        loss = objective.loss("student", drawn).sum / objective.count("student", drawn)
        losses[name] = float(loss.detach())
        gradients[name] = float(torch.autograd.grad(loss, student.table)[0].norm())
    assert gradients["best"] < 0.015
    for other in ("data", "unpaired")[: 2 if share else 1]:  # with one start for all there is nothing to pair
        assert losses["best"] < losses[other] - 0.002
        assert gradients["best"] < 0.85 * gradients[other]


def test_loss_by_hand():
    student = TabularDenoiser(3, 2, 1)
    config = RediConfig(steps=2, random_share=0.5)
    objective = config.build(Distillation(student, student, MaskedProcess(), LENGTH, student))
    real = torch.randint(2, (6, 2), generator=torch.Generator().manual_seed(3))
    drawn = objective.rollout(batch_of(objective, real, 6), RowStreams(0, (1,), range(6)))
    assert torch.equal(drawn.sample, real)  # the first round of random starts pairs them with data
    total = torch.zeros((), dtype=torch.float64)
    for z, x, undecided in zip(drawn.z.tokens, real, drawn.z.open, strict=True):
        for i in range(2):
            if undecided[i]:
                total = total - says(student, z[None])[0, i, x[i]]
    out = objective.loss("student", drawn)
    torch.testing.assert_close(out.sum, total)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum, student.table)[0], torch.autograd.grad(total, student.table)[0]
    )
    assert objective.count("student", drawn) == drawn.z.open.sum() > 0


def test_data_is_needed_for_random_starts_alone_and_k_must_fit_a_row():
    def needs(share):
        student = TabularDenoiser(3, 2, 1)
        config = RediConfig(random_share=share)
        return config.build(Distillation(student, student, MaskedProcess(), LENGTH, student)).needs

    assert needs(0.0) == "nothing"
    assert needs(0.7) == "rows"
    assert RediConfig(steps=9).most_steps == 9


def test_the_sampler_of_random_starts_has_the_same_law_and_keeps_prompts():
    target, rows = minimiser(start_law(0.5)[:, None] * DATA), 5000
    sampler, randomness = RandomStart(random_share=0.5), torch.Generator().manual_seed(0)
    out = fill(target, Canvas.blank(rows, LENGTH, MASK), sampler, 2, randomness)
    found = torch.bincount(out.tokens @ torch.tensor([2, 1]), minlength=4) / rows
    assert (found - rectified(target, 0.5, 2).sum(0)).abs().max() < 0.025
    assert int(out.nfe.max()) == 2
    prompted = fill(target, Canvas.of(torch.tensor([[1, MASK]]).repeat(50, 1), MASK), sampler, 2, randomness)
    assert (prompted.tokens[:, 0] == 1).all()
    canvas = Canvas.blank(20, LENGTH, MASK)
    plain, none = (
        fill(target, canvas, one, 2, torch.Generator().manual_seed(1)) for one in (Ancestral(), RandomStart())
    )
    assert torch.equal(plain.tokens, none.tokens)
