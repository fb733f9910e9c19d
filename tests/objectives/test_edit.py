"""Edit corruption against a plain simulation with lists, and the two-stage curriculum that it belongs to."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from objectives.elbo import EditConfig, MaskedElbo, edited
from teachers.denoiser import DenoiserSpec
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform
from tests.batches import batch_of
from tests.objectives.wiring import tensors_of
from tests.tabular import TabularDenoiser

LENGTH, VOCABULARY, MASK = 10, 40, 7
SPEC = DenoiserSpec(mask_id=MASK, vocabulary=VOCABULARY, max_length=LENGTH)


def streams(rows, seed=0):
    return RowStreams(seed, (0,), rows if isinstance(rows, range) else range(rows))


def tokens(rows, seed=0):
    """Rows of different tokens, none of them the mask."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.tensor([v for v in range(VOCABULARY) if v != MASK])
    return torch.stack([real[torch.randperm(len(real), generator=generator)[:LENGTH]] for _ in range(rows)])


def simulate(row, draws):
    """The edits of one row, one after the other on a list; not fitted to the canvas."""
    row = list(row)
    for kind, where, what in draws:
        at = int(where * len(row))
        allowed = [v for v in range(VOCABULARY) if v != MASK and not (kind >= 2 / 3 and v == row[at])]
        token = allowed[int(what * len(allowed))]
        if kind < 1 / 3:
            row.insert(at, token)
        elif kind < 2 / 3:
            del row[at]
        else:
            row[at] = token
    return row


def levenshtein(a, b):
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        here = [i]
        for j, y in enumerate(b, 1):
            here.append(min(above[j] + 1, here[-1] + 1, above[j - 1] + (x != y)))
        above = here
    return above[-1]


def test_edits_are_those_of_a_simulation_and_no_more_than_were_asked():
    rows, most = 300, 6
    x0, edits = tokens(rows), torch.arange(rows) % (most + 1)
    before = x0.clone()
    out = edited(x0, torch.ones_like(x0).bool(), edits, SPEC, streams(rows), most)
    assert torch.equal(x0, before), "the clean rows were written to"
    assert out.shape == x0.shape
    draws = uniform(streams(rows), rows, most, 3)
    reached = 0
    for row, k, draw, got in zip(x0.tolist(), edits.tolist(), draws.tolist(), out.tolist(), strict=True):
        expected = simulate(row, draw[:k])
        assert got == (expected + [MASK] * LENGTH)[:LENGTH]
        distance = levenshtein(row, expected)
        assert distance <= k
        reached += distance == k
        moved_out = max(0, len(expected) - LENGTH)
        assert levenshtein(row, [v for v in got if v != MASK]) <= k + moved_out
    assert reached > rows / 2, "most edits are not undone by another"


def test_each_kind_comes_as_often_everywhere_and_with_every_token():
    rows = 12_000
    x0 = tokens(1).expand(rows, -1)
    once = torch.ones(rows, dtype=torch.long)
    out = edited(x0, torch.ones_like(x0).bool(), once, SPEC, torch.Generator().manual_seed(0), 1)
    changed = out != x0
    assert changed.any(1).float().mean() > 0.998, "only what is inserted before its like, at the end, changes nothing"
    first = changed.int().argmax(1)
    deletes = (out == MASK).any(1)
    # at the last place an insertion looks like a substitution
    clear = ~deletes & (first < LENGTH - 1)
    inserts, substitutes = clear & (changed.sum(1) > 1), clear & (changed.sum(1) == 1)
    for kind, places in ((deletes, LENGTH), (inserts, LENGTH - 1), (substitutes, LENGTH - 1)):
        assert float(kind.float().mean()) == pytest.approx(places / LENGTH / 3, abs=0.018)  # 4 standard deviations
        share = torch.bincount(first[kind], minlength=LENGTH)[:places] / kind.sum()
        torch.testing.assert_close(share, torch.full_like(share, 1 / places), atol=0.025, rtol=0)
    for kind in (inserts, substitutes):
        seen = torch.bincount(out[kind].gather(1, first[kind, None]).squeeze(1), minlength=VOCABULARY)
        assert seen[MASK] == 0
        assert (seen > 0).sum() == VOCABULARY - 1
        assert seen.max() < 2 * seen.sum() / VOCABULARY


def test_the_number_of_edits_follows_t():
    config = EditConfig()
    t = torch.tensor([0.0, 0.0999, 0.1001, 0.55, 0.999, 1.0])
    assert config.counts(t, torch.full((6,), 100)).tolist() == [0, 0, 1, 5, 9, 10]
    assert (config.most(100), config.most(128), config.most(9)) == (10, 12, 0)


def objective(edit=None, length=3):
    return MaskedElbo(TabularDenoiser(4, length, seed=3), MaskedProcess(), edit)


def test_edits_come_in_the_last_fifth_of_the_updates():
    curriculum, plain = objective(EditConfig()), objective()
    for update in range(100):
        assert not curriculum.begin(update, 100), "there is no target to fill"
        plain.begin(update, 100)
        assert curriculum.editing == (update >= 80)
        assert not plain.editing
    curriculum.begin(3, 100)
    assert not curriculum.editing, "what an update does depends on its number alone"


def test_the_first_stage_is_the_plain_objective_and_the_second_only_adds():
    x0 = torch.randint(0, 3, (8, 3), generator=torch.Generator().manual_seed(0))
    plain, curriculum = objective(), objective(EditConfig(rate=0.9))
    expected = plain.rollout(batch_of(plain, x0, 8), streams(8))
    for update, editing in ((0, False), (99, True)):
        curriculum.begin(update, 100)
        rollout = curriculum.rollout(batch_of(curriculum, x0, 8), streams(8))
        assert torch.equal(rollout.z.tokens, expected.z.tokens)
        assert torch.equal(rollout.z.time, expected.z.time)
        assert (rollout.edited is not None) == editing
        out, theirs = curriculum.loss("student", rollout), plain.loss("student", expected)
        assert (out.sum == theirs.sum) == (not editing)
        assert set(out.metrics) == {"masked_nats"} | ({"edit_nats"} if editing else set())
        assert curriculum.count("student", rollout) == 24


def test_the_loss_by_hand():
    curriculum = objective(EditConfig(rate=0.9))
    curriculum.begin(99, 100)
    x0 = torch.randint(0, 3, (6, 3), generator=torch.Generator().manual_seed(1))
    rollout = curriculum.rollout(batch_of(curriculum, x0, 6), streams(6))
    assert (rollout.edited.tokens != x0).any()
    out = curriculum.loss("student", rollout)
    bound = undone = 0.0
    for b, i in itertools.product(range(6), range(3)):
        for canvas in (rollout.z, rollout.edited):
            entry = int((canvas.tokens[b] * torch.tensor([1, 4, 16])).sum())
            logits = curriculum.student.table[entry, i, :3].tolist()
            nats = math.log(sum(math.exp(v) for v in logits)) - logits[x0[b, i]]
            if canvas is rollout.edited:  # every position, also those that no edit touched
                undone += nats
            elif canvas.open[b, i]:
                bound += nats / float(rollout.z.time[b])
    assert out.sum.item() == pytest.approx(bound + undone)
    assert out.metrics["edit_nats"][0].item() == pytest.approx(undone)
    assert out.metrics["edit_nats"][1] == 18


def test_the_edit_loss_is_least_at_the_posterior():
    """Over all rows of a tiny source, the table that says P(x₀ᵢ | edited) has no gradient."""
    curriculum = objective(EditConfig(rate=0.9), length=2)
    curriculum.begin(99, 100)
    x0 = torch.randint(0, 3, (400, 2), generator=torch.Generator().manual_seed(2))
    rollout = curriculum.rollout(batch_of(curriculum, x0, 400), streams(400))
    table = curriculum.student.table
    codes = (rollout.edited.tokens * torch.tensor([1, 4])).sum(1)
    with torch.no_grad():
        for code, i in itertools.product(range(16), range(2)):
            seen = torch.bincount(x0[codes == code, i], minlength=4).double()
            table[code, i] = seen.log()
    rollout.z = replace(rollout.z, open=torch.zeros_like(x0).bool())  # nothing masked: the edit loss alone
    (gradient,) = torch.autograd.grad(curriculum.loss("student", rollout).sum, table)
    assert gradient[codes].abs().max() < 1e-9
    with torch.no_grad():
        table += torch.randn(table.shape, generator=torch.Generator().manual_seed(3), dtype=table.dtype)
    (gradient,) = torch.autograd.grad(curriculum.loss("student", rollout).sum, table)
    assert gradient[codes].abs().max() > 1


def test_nothing_depends_on_how_rows_are_split():
    curriculum = objective(EditConfig(rate=0.9))
    curriculum.begin(99, 100)
    x0 = torch.randint(0, 3, (8, 3), generator=torch.Generator().manual_seed(0))
    whole = curriculum.rollout(batch_of(curriculum, x0, 8), streams(8))
    halves = [curriculum.rollout(batch_of(curriculum, x0[r], 4), streams(r)) for r in (range(4), range(4, 8))]
    for name, value in tensors_of(whole).items():
        assert torch.equal(value, torch.cat([tensors_of(half)[name] for half in halves]))
    table = curriculum.student.table

    def gradient(parts):
        return torch.autograd.grad(sum(curriculum.loss("student", whole.rows(p)).sum for p in parts), table)[0]

    split = gradient([slice(0, 2), slice(2, 8)])
    torch.testing.assert_close(split, gradient([slice(0, 8)]))
    assert split.abs().max() > 0
