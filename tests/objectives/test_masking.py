"""The masks of conversions: times, schedules, and the ELBO against enumeration over all orders of unmasking."""

import itertools
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from objectives.elbo import ElboRollout, MaskedElbo
from objectives.masking import LOW, Masking, MasksConfig
from teachers.canvas import Canvas, Context, places
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.masks import block_numbers, visible_in_context
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of
from tests.networks import shape
from tests.objectives.wiring import check_batch_split, check_rows_stand_alone, tensors_of

TOKENS, L, MASK, EOS = 3, 4, 3, 0
BOTH = pytest.mark.parametrize("schedule", ["log-linear", "cosine"])


def tiny(size=None, shift=False, length=L):
    """A random network of so many tokens a block, or of full attention."""
    torch.manual_seed(0)
    spec = DenoiserSpec(
        mask_id=MASK,
        vocabulary=TOKENS + 1,
        max_length=length,
        eos_id=EOS,
        attention="full" if size is None else "block",
        block_size=size,
        shift=shift,
    )
    return create_denoiser("qwen3", shape(16, 1, initializer_range=0.5), spec).requires_grad_(False)


def blocks_of(x0, size):
    return block_numbers(places(torch.zeros_like(x0)), size)


def chain(model, x0, open_):
    """−log p of the open tokens of one row, the mean over all orders in which they can be unmasked."""
    positions, total = [i for i in range(L) if open_[i]], 0.0
    for order in itertools.permutations(positions):
        z = torch.where(open_, MASK, x0)
        for i in order:
            total -= model.log_probs(Canvas.of(z, MASK))[0, i, x0[0, i]].item()
            z[0, i] = x0[0, i]
    return total / math.factorial(len(positions))


def exact_bound(model, x0):
    """The ELBO at any schedule: of a row, or block by block, each with text before it and anything behind."""
    size = model.spec.block_size or L
    bounds = []
    for start in range(0, L, size):
        row = x0.clone()
        row[0, start + size :] = MASK
        bounds.append(chain(model, row, (torch.arange(L) >= start) & (torch.arange(L) < start + size)))
    return sum(bounds)


def patterns(inside):
    """All masks of the positions where ``inside`` is True."""
    for bits in itertools.product([False, True], repeat=int(inside.sum())):
        mask = torch.zeros(1, L, dtype=torch.bool)
        mask[0, inside] = torch.tensor(bits)
        yield mask


def integral(objective, x0, inside, context=None):
    """E_t over masks of the positions inside, by quadrature and enumeration, through the real loss."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total, process = 0.0, objective.process
    for mask in patterns(inside):
        k, n = int(mask.sum()), int(inside.sum())
        z = Canvas(torch.where(mask, MASK, x0), mask, context=context)
        rest = Canvas(torch.where(~mask & inside, MASK, x0), ~mask & inside, context=context)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            times = torch.full((1, L), node, dtype=torch.float64)
            alpha = process.alpha(times[0, 0]).item()
            rollout = ElboRollout(Canvas.blank(1, L, MASK), x0, z, times=times)
            rollout.complement = rest if objective.masks.complementary else None
            total += weight * (1 - alpha) ** k * alpha ** (n - k) * objective.loss("student", rollout).sum.item()
    return total


@BOTH
@pytest.mark.parametrize("shift", [False, True])
def test_masks_and_complements_have_the_bound_of_masks_alone(schedule, shift):
    model, x0, everywhere = tiny(shift=shift), torch.tensor([[0, 1, 2, 2]]), torch.ones(L, dtype=torch.bool)
    plain, both = (
        integral(MaskedElbo(model, MaskedProcess(schedule), masks=MasksConfig(complementary=c)), x0, everywhere)
        for c in (False, True)
    )
    assert plain == pytest.approx(exact_bound(model, x0), rel=1e-5)
    assert both == pytest.approx(plain, rel=1e-5)


@BOTH
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("complementary", [False, True])
def test_one_time_a_block_is_the_bound_of_a_model_that_writes_block_by_block(complementary, shift, schedule):
    model, x0 = tiny(2, shift), torch.tensor([[0, 1, 2, 2]])
    objective = MaskedElbo(model, MaskedProcess(schedule), masks=MasksConfig(complementary=complementary))
    blocks = blocks_of(x0, 2)
    context = Context(blocks=blocks, clean=x0)
    total = sum(integral(objective, x0, blocks[0] == block, context) for block in (0, 1))
    assert total == pytest.approx(exact_bound(model, x0), rel=1e-5)


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("size", [None, 2])
def test_estimates_from_rollouts_are_unbiased(size, complementary):
    model, rows, repeats = tiny(size, shift=True), 512, 40
    objective = MaskedElbo(model, MaskedProcess(), masks=MasksConfig(complementary=complementary))
    x0 = torch.tensor([[0, 1, 2, 2]]).repeat(rows, 1)
    means = []
    for repeat in range(repeats):
        rollout = objective.rollout(batch_of(objective, x0, rows), RowStreams(0, (repeat,), range(rows)))
        means.append(objective.loss("student", rollout).sum.item() / rows)
    assert objective.count("student", rollout) == rows * L
    # times end a thousandth before their ends, which is as much of the integral
    exact = exact_bound(model, x0[:1])
    allowed = 4 * np.std(means) / math.sqrt(repeats) + 2e-3 * exact
    assert np.mean(means) == pytest.approx(exact, abs=allowed)
    assert allowed < 0.06 * exact


@pytest.mark.parametrize("complementary", [False, True])
def test_each_token_is_masked_in_one_of_two_complements(complementary):
    objective = MaskedElbo(tiny(), MaskedProcess(), masks=MasksConfig(complementary=complementary))
    x0 = torch.randint(0, TOKENS, (6, L), generator=torch.Generator().manual_seed(0))
    rollout = objective.rollout(batch_of(objective, x0, 6), RowStreams(0, (0,), range(6)))
    assert (rollout.complement is not None) == complementary
    if complementary:
        assert torch.equal(rollout.complement.open, ~rollout.z.open)
        for canvas in (rollout.z, rollout.complement):
            assert torch.equal(canvas.tokens, torch.where(canvas.open, MASK, x0))
        torch.testing.assert_close(rollout.complement.time, 1 - rollout.z.time)


def test_blocks_have_times_of_their_own_spread_evenly():
    masking = Masking(MasksConfig(), tiny(1, length=64).spec)
    x0 = torch.zeros(2, 64, dtype=torch.long)
    uniforms = torch.tensor([0.3, 0.9], dtype=torch.float64)
    context = masking.context(x0, RowStreams(0, (0,), range(2)))
    t = masking.times(uniforms, context)
    assert t.shape == (2, 64)
    torch.testing.assert_close(t[:, 0], LOW + (1 - LOW) * torch.tensor([0.3, 0.7], dtype=torch.float64))
    for row in t:  # no 64th of the range is far from its share of the 64 blocks
        share = ((row - LOW) / (1 - LOW)).sort().values
        assert (share - torch.arange(64) / 64).abs().max() < 2 / 64
    pair = Masking(MasksConfig(complementary=True), tiny(1, length=64).spec)
    assert (pair.times(torch.tensor([0.0, 0.5], dtype=torch.float64), None) <= 1 - LOW).all()


def test_a_causal_mask_opens_with_the_updates():
    objective = MaskedElbo(tiny(), MaskedProcess(), masks=MasksConfig(anneal=0.5))
    x0 = torch.zeros(64, L, dtype=torch.long)
    shares = []
    for update in (0, 2, 5, 9):
        objective.begin(update, 10)
        context = objective.masking.context(x0, RowStreams(0, (update,), range(64)))
        shares.append(1.0 if context is None else context.opened.double().mean().item())
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.4, abs=0.05)
    assert shares[2:] == [1, 1]
    assert MaskedElbo(tiny(), MaskedProcess(), masks=MasksConfig(anneal=0.5)).masking.open_share == 1  # at its end


def test_blocks_grow_and_shrink_with_the_updates():
    stages = [(0, 1), (0.25, 2), (0.5, 4), (0.75, 2)]
    objective = MaskedElbo(tiny(2), MaskedProcess(), masks=MasksConfig(block_sizes=stages))
    x0 = torch.zeros(2, L, dtype=torch.long)
    for update, expected in [(0, 1), (24, 1), (25, 2), (50, 4), (74, 4), (75, 2), (99, 2)]:
        objective.begin(update, 100)
        context = objective.masking.context(x0, RowStreams(0, (0,), range(2)))
        assert torch.equal(context.blocks, blocks_of(x0, expected)), update
        assert (context.clean is None) == (expected == L)  # one block has none before it


@pytest.mark.parametrize("stages", [[(0.1, 2)], [(0, 2), (0.5, 4), (0.5, 2)], [(0, 2), (0.6, 4), (0.3, 2)]])
def test_stages_begin_at_the_start_and_in_order(stages):
    with pytest.raises(ValidationError, match=r"block_sizes begin at .* must begin at 0"):
        MasksConfig(block_sizes=stages)


def test_rows_of_one_document_share_a_mask():
    x0 = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(0))
    context = MaskedElbo(tiny(2), MaskedProcess()).masking.context(x0, RowStreams(0, (0,), range(3)))
    assert torch.equal(context.blocks, blocks_of(x0, 2))
    for part in (context, context.rows(slice(1, 3))):
        seen = visible_in_context(part, 4, x0.device)
        each = visible_in_context(Context(blocks=part.blocks.clone(), clean=part.clean), 4, x0.device)
        assert (len(seen.dense()), len(each.dense())) == (1, len(part.blocks))
        assert torch.equal(seen.dense().expand_as(each.dense()), each.dense())


def test_documents_end_with_their_end_of_text():
    masking = Masking(MasksConfig(documents=True), tiny().spec)
    x0 = torch.tensor([[1, EOS, 2, 2], [EOS, EOS, 1, 2], [1, 1, 1, 1]])
    context = masking.context(x0, RowStreams(0, (0,), range(3)))
    assert context.documents.tolist() == [[0, 0, 1, 1], [0, 1, 2, 2], [0, 0, 0, 0]]
    assert Masking(MasksConfig(), tiny().spec).context(x0, RowStreams(0, (0,), range(3))) is None


ALL = {
    "complementary": (None, {"complementary": True}),
    "annealed": (None, {"anneal": 1.0}),
    "blocks": (2, {}),
    "everything": (2, {"complementary": True, "documents": True, "block_sizes": [(0, 1), (0.5, 2)]}),
}


@pytest.mark.parametrize("name", ALL)
def test_rows_stand_alone_and_add_up(name):
    size, masks = ALL[name]
    objective = MaskedElbo(tiny(size, shift=True), MaskedProcess(), masks=MasksConfig(**masks))
    objective.student.requires_grad_(True)
    objective.begin(3, 10)
    x0 = torch.randint(0, TOKENS, (8, L), generator=torch.Generator().manual_seed(0))
    check_batch_split(objective, x0)
    check_rows_stand_alone(objective, x0)
    rollout = objective.rollout(batch_of(objective, x0, 8), RowStreams(0, (0,), range(8)))
    assert any("context" in key for key in tensors_of(rollout)) == (name != "complementary")
