"""Certainty forcing: canvases right at any batch size, loss and gradient by hand, the minimum by enumeration."""

import pytest
import torch

from objectives.certainty import CanvasRollout, CertaintyConfig, draw_block
from objectives.objective import Distillation, Surroundings
from students.fill import fill
from students.rollout import StateRecorder
from students.samplers import Ancestral, Dilated, Threshold
from students.student import trainable_copy
from teachers.canvas import Canvas
from teachers.denoiser import DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from tests.batches import batch_of, says
from tests.networks import shape
from tests.tabular import TabularDenoiser, all_patterns, all_sequences

SHAPE = shape(intermediate_size=16)
LENGTH, VOCABULARY, MASK = 10, 7, 1


def build(config, length=LENGTH):
    torch.manual_seed(0)
    teacher = create_denoiser("qwen3", SHAPE, DenoiserSpec(MASK, VOCABULARY, length)).requires_grad_(False).eval()
    student = trainable_copy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return config.build(Distillation(teacher, student, MaskedProcess(), length, teacher))


def build_tabular(config, length=3, sharpness=1.0, sampler=Ancestral()):  # noqa: B008, frozen
    teacher = TabularDenoiser(4, length, 0, sharpness)
    return config.build(Distillation(teacher, trainable_copy(teacher), MaskedProcess(), length, teacher, sampler))


def rows_of(rows, length=LENGTH):
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(5))


def shown(rollout, mask_id=MASK):
    """(B, C, L) what the student sees."""
    return torch.where(rollout.hidden, mask_id, rollout.labels[:, None])


def assert_splits_alike(objective, real, sizes=(8, 4, 1)):
    """One gradient, however a rollout is cut into micro-batches."""
    rollout = objective.rollout(batch_of(objective, real, len(real)), RowStreams(0, (0,), range(len(real))))
    gradients = []
    for size in sizes:
        objective.student.zero_grad()
        for start in range(0, len(real), size):
            out = objective.loss("student", rollout.rows(slice(start, start + size)))
            (out.sum / objective.count("student", rollout)).backward()
        gradients.append([p.grad.clone() for p in objective.student.parameters()])
    assert any(g.abs().max() > 1e-3 for g in gradients[0])
    for other in gradients[1:]:
        for one, many in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-6)


def empirical_law(student, rows, states):
    """Make a table the law of the rows' tokens given what each of their states shows.

    Args:
        states: (S, rows, L) bool masks, each as likely as the others for every row.
    """
    counts = torch.zeros_like(student.table)
    for masked in states:
        z = torch.where(masked, 3, rows)
        seen = torch.nn.functional.one_hot(rows, 4).to(counts) * masked[..., None]
        counts.index_add_(0, (z * student.place).sum(-1), seen)
    with torch.no_grad():
        student.table.copy_(counts.clamp(min=1e-12).log())


def test_every_row_of_a_batch_is_masked_as_it_would_be_alone():
    """The released masking writes each row's block into all rows, so it is right at batch size 1 only."""
    objective, real = build(CertaintyConfig(block=4)), rows_of(8)
    together = objective.rollout(batch_of(objective, real, 8), RowStreams(0, (0,), range(8)))
    for row in range(8):
        alone = objective.rollout(batch_of(objective, real[row : row + 1], 1), RowStreams(0, (0,), [row]))
        assert torch.equal(shown(alone)[0], shown(together)[row])
        assert torch.equal(alone.scored[0], together.scored[row])


def test_two_canvases_share_a_block_between_them():
    objective, real = build(CertaintyConfig(block=4)), rows_of(400)
    rollout = objective.rollout(batch_of(objective, real, 400), RowStreams(0, (1,), range(400)))
    first, second = rollout.scored.unbind(1)
    assert not (first & second).any()
    block = first | second
    starts = block.int().argmax(1)
    assert set(starts.tolist()) == {0, 4, 8}  # the last has two tokens; none is empty
    position = torch.arange(LENGTH)
    end = (starts + 4).clamp(max=LENGTH)
    assert torch.equal(block, (position >= starts[:, None]) & (position < end[:, None]))
    assert abs(float(first.sum() / block.sum()) - 0.5) < 0.03
    for canvas in range(2):
        z, scored = shown(rollout)[:, canvas], rollout.scored[:, canvas]
        hidden = scored | (position >= end[:, None])
        assert torch.equal(z == MASK, hidden)
        assert torch.equal(z[~hidden], real[~hidden])


def test_blocks_that_divide_the_row_are_never_empty():
    start, end = draw_block(torch.ones(4, 8).bool(), 4, torch.tensor([0.0, 0.49, 0.5, 1 - 1e-9], dtype=torch.float64))
    assert start.tolist() == [0, 0, 4, 4]
    assert end.tolist() == [4, 4, 8, 8]
    start, end = draw_block(torch.ones(1, 8).bool(), 32, torch.tensor([0.9], dtype=torch.float64))
    assert (start.tolist(), end.tolist()) == ([0], [8])


def test_loss_by_hand():
    """Per row: mean cross-entropy of its scored positions, and β times the mean tempered entropy where it is right."""
    config = CertaintyConfig(block=2, entropy_weight=1.5, temperature=0.5)
    objective, real = build_tabular(config), all_sequences(3, 3)[::3]
    rollout = objective.rollout(batch_of(objective, real, 9), RowStreams(0, (2,), range(9)))
    total, right = 0.0, 0
    for row in range(9):
        for canvas in range(2):
            logits = says(objective.student, shown(rollout, 3)[row, canvas][None])[0, :, :3]
            nats, entropies = [], []
            for i in rollout.scored[row, canvas].nonzero().squeeze(1):
                nats.append(-logits[i].softmax(-1)[real[row, i]].log())
                if logits[i].argmax() == real[row, i]:
                    p = (2 * logits[i]).softmax(-1)
                    entropies.append(-(p * p.log()).sum())
            total += sum(nats) / max(1, len(nats)) + 1.5 * sum(entropies) / max(1, len(entropies))
            right += len(entropies)
    out = objective.loss("student", rollout)
    torch.testing.assert_close(out.sum, total)
    assert 0 < right < 27
    assert out.metrics["correct"][0] == right
    assert out.metrics["entropy_where_correct"][1] == right


@pytest.mark.parametrize("right", [True, False])
def test_gradient_by_hand(right):
    """At one position: p − 1(label), and β times −q (log q + H) / T where the label is the most probable token."""
    objective = build_tabular(CertaintyConfig(entropy_weight=2.0, temperature=0.5))
    z = torch.tensor([[0, 3, 2]])
    place = (z[0] * objective.student.place).sum()
    p = objective.student.table.detach()[place, 1, :3].softmax(-1)
    label = int(p.argmax() if right else p.argmin())
    masked = z == 3
    labels = torch.where(masked, label, z)
    rollout = CanvasRollout(Canvas.blank(1, 3, 3), labels, masked[:, None], masked[:, None])
    objective.loss("student", rollout).sum.backward()
    expected = p - torch.nn.functional.one_hot(torch.tensor(label), 3)
    if right:
        q = p**2 / (p**2).sum()
        expected = expected + 2.0 * -q * (q.log() - (q * q.log()).sum()) / 0.5
    gradient = objective.student.table.grad
    torch.testing.assert_close(gradient[place, 1, :3], expected)
    assert gradient.abs().sum() == gradient[place, 1, :3].abs().sum()


def every_state(objective, rows):
    """All patterns of rows that are one block, with their complements, at once: an average over them is the loss."""
    patterns = all_patterns(3)
    scored = torch.stack([patterns, ~patterns], 1).repeat_interleave(len(rows), 0)
    labels = rows.repeat(len(patterns), 1)
    return CanvasRollout(Canvas.blank(len(labels), 3, 3), labels, scored, scored)


@pytest.mark.parametrize("sampler", [Dilated(), Threshold(threshold=0.9)])
def test_canvases_of_the_sampler_are_those_that_it_meets_on_the_way_to_the_rows(sampler):
    """It gives the order, and the tokens are the row's."""
    objective = build_tabular(CertaintyConfig(canvases="sampler", steps=[3]), sharpness=2.0, sampler=sampler)
    real, blank = all_sequences(3, 3)[::3], Canvas.blank(9, 3, 3)
    met, expected = set(), set()
    for update in range(200):
        rollout = objective.rollout(batch_of(objective, real, 9), RowStreams(0, (update,), range(9)))
        assert torch.equal(rollout.scored, rollout.hidden)
        met |= {(row, tuple(z)) for row, z in enumerate(shown(rollout, 3)[:, 0].tolist())}
        recorder, streams = StateRecorder(blank, 3), RowStreams(1, (update,), range(9))
        passes = fill(objective.student, blank, sampler, 3, streams, given=real, record=recorder).nfe.tolist()
        expected |= {(row, tuple(z)) for row, n in enumerate(passes) for z in recorder.states[row, :n].tolist()}
    assert met == expected
    assert len(met) > 9, "more than the first of each row"


def test_canvases_of_a_sampler_with_more_steps_than_tokens_are_refused():
    config = CertaintyConfig(canvases="sampler", steps=[4, 20])
    with pytest.raises(ValueError, match=r"objective\.steps has 20"):
        config.check(Surroundings(10, Dilated(), Dilated(), frozenset({"student"})))
    CertaintyConfig(steps=[20]).check(Surroundings(10, Dilated(), Dilated(), frozenset({"student"})))


def test_without_entropy_the_minimum_is_the_law_of_the_rows_and_entropy_sharpens_it():
    rows = all_sequences(3, 3).repeat_interleave(torch.arange(1, 28) % 5 + 1, 0)  # a law with structure
    gradients = {}
    for weight in (0.0, 1.0):
        objective = build_tabular(CertaintyConfig(entropy_weight=weight))
        empirical_law(objective.student, rows, all_patterns(3)[:, None].expand(-1, len(rows), -1))
        objective.loss("student", every_state(objective, rows)).sum.backward()
        gradients[weight] = objective.student.table.grad
    assert gradients[0.0].abs().max() < 1e-9
    # descending makes the most probable token of the all-masked canvas more probable
    all_masked = (torch.full((3,), 3) * objective.student.place).sum()
    step = -gradients[1.0][all_masked][:, :3]
    best = objective.student.table[all_masked][:, :3].argmax(-1, keepdim=True)
    assert (step.gather(1, best) > 1e-3).all()


@pytest.mark.parametrize("config", [CertaintyConfig(block=4), CertaintyConfig(canvases="sampler", steps=[3])])
def test_gradient_does_not_depend_on_how_the_batch_is_split(config):
    assert_splits_alike(build(config), rows_of(8))
