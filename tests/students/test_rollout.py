"""Rollouts write what the student's own sampler writes, and record what a gradient needs."""

import pytest
import torch

from students.fill import fill
from students.rollout import StateRecorder, k_step, on_the_way, one_move, two_moves
from students.samplers import Ancestral, Dilated, TopK
from teachers.canvas import Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, uniform
from tests.tabular import TabularDenoiser, all_patterns, all_sequences

V, L, MASK = 3, 3, 3
PROCESS = MaskedProcess()
X = all_sequences(V, L)


def blank(rows):
    return Canvas.blank(rows, L, MASK)


def plain_k_step_states(student, steps):
    """Exact law of the canvas before each of the K ancestral steps, by enumeration: list of {canvas: probability}."""
    law = {(MASK,) * L: 1.0}
    laws = [law]
    for step in range(steps - 1):
        reveal = float(PROCESS.reveal_probability(torch.tensor(1 - step / steps), torch.tensor(1 - (step + 1) / steps)))
        following = {}
        for canvas, chance in law.items():
            z = torch.tensor(canvas)
            p = student.log_probs(Canvas.of(z[None], MASK))[0].exp()
            for pattern in all_patterns(L):
                if (pattern & (z != MASK)).any():
                    continue
                free = int((z == MASK).sum())
                shown = int(pattern.sum())
                chosen = reveal**shown * (1 - reveal) ** (free - shown)
                for tokens in all_sequences(V, shown) if shown else [torch.empty(0, dtype=torch.long)]:
                    new = z.clone()
                    new[pattern] = tokens
                    drawn = float(p[pattern, tokens].prod()) if shown else 1.0
                    key = tuple(new.tolist())
                    following[key] = following.get(key, 0.0) + chance * chosen * drawn
        law = following
        laws.append(law)
    return laws


def total_variation(expected, drawn):
    counts = {}
    for row in drawn.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    keys = expected.keys() | counts.keys()
    return 0.5 * sum(abs(expected.get(k, 0.0) - counts.get(k, 0) / len(drawn)) for k in keys)


@torch.no_grad()
def test_k_step_states_have_the_law_of_the_students_own_sampler():
    student = TabularDenoiser(V + 1, L, seed=2)
    rows = 20_000
    out = k_step(student, PROCESS, blank(rows), Ancestral(), [3], RowStreams(0, (0,), range(rows)))
    for made, expected in enumerate(plain_k_step_states(student, 3)):
        states = out.states[:, 0][(out.time - (1 - made / 3)).abs() < 1e-9]
        assert abs(len(states) / rows - 1 / 3) < 0.02
        # with n draws over c cells, the expected distance of a correct sampler is below sqrt(c / 2πn)
        assert total_variation(expected, states) < 2 * (len(expected) / (6.28 * len(states))) ** 0.5 + 0.005


@torch.no_grad()
def test_dilated_states_are_those_of_the_dilated_sampler():
    student = TabularDenoiser(V + 1, L, seed=2)
    out = k_step(student, PROCESS, blank(12_000), Dilated(), [L], RowStreams(0, (0,), range(12_000)))
    made = (L * (1 - out.time)).round().long()
    assert torch.equal((out.states[:, 0] != MASK).sum(1), made), "one position a step"
    finished = fill(student, blank(20_000), Dilated(), L, torch.Generator().manual_seed(1)).tokens
    law = {tuple(x.tolist()): float((finished == x).all(1).double().mean()) for x in X}
    last = made == L - 1  # what is left is one draw, as in the sampler's last pass
    assert total_variation(law, out.sample[last]) < 2 * (len(law) / (6.28 * int(last.sum()))) ** 0.5


@pytest.mark.parametrize("budget", ["text", "block"])
def test_a_rule_that_ranks_leaves_as_much_open_as_its_schedule_says_after_every_number_of_steps(budget):
    """Of the last recorded state as well: what it leaves is what its last step would write."""
    student, steps = TabularDenoiser(3, 4, 0), 4 if budget == "text" else 2
    sampler = TopK(order="margin", block_length=2, budget=budget)
    out = k_step(student, PROCESS, Canvas.blank(400, 4, 2), sampler, [steps], RowStreams(0, (0,), range(400)))
    assert set(out.time.tolist()) == {1.0, 0.75, 0.5, 0.25}
    assert torch.equal(out.revealed[:, 0].sum(1), (4 * out.time).long())
    torch.testing.assert_close(out.next_time, out.time - 0.25)


@torch.no_grad()
def test_sample_is_drawn_from_the_recorded_state():
    student = TabularDenoiser(V + 1, L, seed=3)
    out = k_step(student, PROCESS, blank(20_000), Ancestral(), [2], RowStreams(1, (0,), range(20_000)))
    start = (out.states[:, 0] == MASK).all(1)
    p = student.log_probs(blank(1))[0].exp()
    expected = {tuple(x.tolist()): float(p[torch.arange(L), x].prod()) for x in X}
    assert total_variation(expected, out.sample[start]) < 0.03
    kept = ~out.revealed[:, 0]
    assert (out.sample[kept] == out.states[:, 0][kept]).all()
    assert (out.revealed[:, 0] == (out.states[:, 0] == MASK)).all()


def test_two_moves_reveal_every_position_once():
    student = TabularDenoiser(V + 1, L, seed=4)
    tau = torch.full((4000,), 0.25, dtype=torch.float64)
    out = two_moves(student, PROCESS, blank(4000), tau, RowStreams(2, (0,), range(4000)))
    assert (out.revealed.sum(1) == 1).all()
    assert abs(float(out.revealed[:, 0].float().mean()) - 0.75) < 0.02
    middle = out.states[:, 1]
    assert ((middle == MASK) == out.revealed[:, 1]).all()
    assert (out.sample[middle != MASK] == middle[middle != MASK]).all()
    assert (out.sample != MASK).all()


def test_rows_do_not_depend_on_the_batch_they_are_in():
    student = TabularDenoiser(V + 1, L, seed=5)
    whole, *halves = (
        k_step(student, PROCESS, blank(len(rows)), Ancestral(), [2, 3], RowStreams(7, (3,), rows))
        for rows in (range(8), range(4), range(4, 8))
    )
    for name in ("states", "revealed", "sample", "time"):
        torch.testing.assert_close(getattr(whole, name), torch.cat([getattr(h, name) for h in halves]))
    one = one_move(student, blank(8), RowStreams(7, (3,), range(8)))
    other = one_move(student, blank(4), RowStreams(7, (3,), range(4, 8)))
    assert (one.sample[4:] == other.sample).all()


def test_collective_students_make_the_same_passes_whatever_the_rows_drew():
    """Every process must make every pass; the extra ones change no row and draw no random number."""

    class Counted(TabularDenoiser):
        passes = 0

        def features(self, *args, **kwargs):
            self.passes += 1
            return super().features(*args, **kwargs)

    student = Counted(V + 1, L, seed=5)
    different = set()
    for row in range(6):
        counts = []
        for collective in (False, True):
            student.collective, student.passes = collective, 0
            streams = RowStreams(7, (3,), [row])
            moved = k_step(student, PROCESS, blank(1), Ancestral(), [2, 5], streams)
            counts.append((moved, student.passes, uniform(streams, 1, 3)))
        (plain, fewer, after), (padded, all_of_them, after_padded) = counts
        assert (plain.features is None) == (padded.features is None)
        parts = {name: value for name, value in vars(plain).items() if value is not None}
        assert all(torch.equal(value, getattr(padded, name)) for name, value in parts.items())
        assert torch.equal(after, after_padded)
        assert all_of_them == min(5 - 1, L) + 1
        different.add(fewer)
    assert len(different) > 1


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"block_length": 2}, {"block_length": 2, "budget": "block"}])
@pytest.mark.parametrize("rule", [Ancestral, Dilated])
def test_a_planned_rules_states_on_given_tokens_are_those_of_filling_with_them(rule, settings):
    """No network is asked for them, since the plan looks at no prediction."""
    student, given, steps = TabularDenoiser(V + 1, L, seed=2), X, torch.full((len(X),), 3)
    sampler, rows = rule(**settings), range(len(X))
    state = on_the_way(student, PROCESS, blank(len(X)), sampler, [3], given, RowStreams(0, (0,), rows))
    streams, recorder = RowStreams(0, (0,), rows), StateRecorder(blank(len(X)), L)
    uniform(streams, len(X), 2)  # how many steps, and how many of them are made
    fill(student, blank(len(X)), sampler, steps, streams, given=given, record=recorder)
    met = (recorder.states == state.tokens[:, None]).all(2)
    assert met.any(1).all()
    assert torch.equal(state.open, state.tokens == MASK)
    assert len(met.int().argmax(1).unique()) > 1
