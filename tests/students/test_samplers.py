"""Samplers against the exact law of the masked process on a vocabulary small enough to enumerate."""

from __future__ import annotations

import itertools
import math
import weakref

import pytest
import torch
from torch import Tensor

from students.fill import Filled, fill
from students.samplers import LOG_LINEAR, SAMPLERS, Ancestral, Dilated
from students.samplers.ancestral import reveal_transitions
from students.samplers.blocks import number_events
from teachers import chunks, randomness
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.oracle.markov import random_source
from teachers.process import MaskedProcess
from teachers.randomness import categorical, gumbel_float32, token_or_mask_float32, uniform

MASK, VOCABULARY, LENGTH = 3, 4, 3
# 99.99 % quantile of χ² with 26 degrees of freedom; the seeds are fixed, so a pass is a pass
CHI_SQUARE_26 = 60.1


class Table(Denoiser):
    """p(x₀ᵢ | z) read from a random table over all canvases; with ``by_time`` from another table for t > 1/2."""

    def __init__(self, by_time: bool = False):
        super().__init__()
        self.spec = DenoiserSpec(MASK, VOCABULARY, LENGTH, time_conditioned=by_time)
        logits = 1.5 * torch.randn(2, VOCABULARY**LENGTH, LENGTH, VOCABULARY, generator=seeded(5))
        logits[..., MASK] = -torch.inf
        self.table = torch.nn.Parameter(logits.log_softmax(-1), requires_grad=False)
        self.forwarded: list[Tensor] = []

    def features(self, canvas, select=None):
        z, late = canvas.tokens, torch.zeros(len(canvas), dtype=torch.int64)
        self.forwarded.append(z.clone())
        if self.spec.time_conditioned:
            assert canvas.time is not None, "a sampler knows the time of its canvas"
            late = (self.time(canvas) > 0.5).long()
        code = (z * torch.tensor([VOCABULARY**2, VOCABULARY, 1])).sum(1)
        log_probs = self.table[late, code]
        return log_probs if select is None else log_probs[select]

    def save(self, folder):
        raise AssertionError("not saved in these tests")


class Fixed(Denoiser):
    """The same distribution over tokens at every position, whatever the canvas; the mask is the last entry."""

    def __init__(self, probabilities: Tensor, length: int):
        super().__init__()
        probs = probabilities if probabilities.dim() == 2 else probabilities.expand(length, -1)
        log_probs = torch.cat([probs.log(), torch.full((length, 1), -torch.inf)], 1).float()
        self.law = torch.nn.Parameter(log_probs, requires_grad=False)
        self.spec = DenoiserSpec(log_probs.shape[1] - 1, log_probs.shape[1], length)
        self.forwarded: list[Tensor] = []

    def features(self, canvas, select=None):
        self.forwarded.append(canvas.tokens.clone())
        log_probs = self.law.expand(len(canvas), -1, -1)
        return log_probs if select is None else log_probs[select]

    def save(self, folder):
        raise AssertionError("not saved in these tests")


# the others have tests of their own: one needs a critic, one an end token
ALONE = sorted(name for name, config in SAMPLERS.items() if not (config.needs_critic or config.inserts))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masked_canvas(rows: int, length: int = LENGTH, mask: int = MASK) -> Canvas:
    return Canvas.blank(rows, length, mask)


def write(name, denoiser: Denoiser, canvas: Canvas, steps: int, seed: int, process=LOG_LINEAR, **settings) -> Filled:
    """What a sampler of that name, with these settings, makes of a canvas."""
    return fill(denoiser, canvas, SAMPLERS[name](**settings), steps, seeded(seed), process=process)


def exact_law(denoiser: Table, steps: int, process: MaskedProcess, start=(MASK,) * LENGTH) -> Tensor:
    """The law of plain ancestral sampling, by summing over every trajectory: (V^L,)."""
    states = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * LENGTH)
    law = (states == torch.tensor(start)).all(1).double()
    times = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    for t, s in itertools.pairwise(times):
        reveal = float(process.reveal_probability(t, s))
        seen = Canvas.of(states, MASK, time=t.expand(len(states)))
        moved = reveal * denoiser.log_probs(seen).double().exp()
        moved[..., MASK] = 1 - reveal
        kept = torch.nn.functional.one_hot(states, VOCABULARY).double()
        per_position = torch.where((states == MASK)[..., None], moved, kept)
        law = torch.einsum("n,na,nb,nc->abc", law, *per_position.unbind(1)).flatten()
    return law


def chi_square(tokens: Tensor, law: Tensor) -> float:
    code = (tokens * torch.tensor([VOCABULARY**2, VOCABULARY, 1])).sum(1)
    seen = torch.bincount(code, minlength=len(law)).double()
    assert (seen[law < 1e-15] == 0).all(), "sampled what the process never makes"
    possible = law > 1e-15
    expected = law[possible] * len(tokens)
    return float(((seen[possible] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("steps", "schedule", "by_time"),
    [
        (1, "log-linear", False),
        (2, "log-linear", False),
        (1024, "log-linear", False),
        (3, "cosine", False),
        (4, "log-linear", True),
        (3, "cosine", True),
    ],
)
def test_row_sparse_ancestral_has_the_law_of_plain_ancestral(steps, schedule, by_time):
    denoiser, process = Table(by_time), MaskedProcess(schedule)
    law = exact_law(denoiser, steps, process)
    out = write("ancestral", denoiser, masked_canvas(100_000), steps, 1, process)
    assert chi_square(out.tokens, law) < CHI_SQUARE_26


def test_the_chi_square_test_tells_step_counts_and_schedules_apart():
    denoiser = Table()
    out = write("ancestral", denoiser, masked_canvas(100_000), 1024, 1)
    assert chi_square(out.tokens, exact_law(denoiser, 2, MaskedProcess())) > 10 * CHI_SQUARE_26
    out = write("ancestral", denoiser, masked_canvas(100_000), 3, 1, MaskedProcess("cosine"))
    assert chi_square(out.tokens, exact_law(denoiser, 3, MaskedProcess())) > 2 * CHI_SQUARE_26


def test_plain_reverse_steps_have_the_law_of_the_enumeration():
    denoiser, process, steps = Table(), MaskedProcess("cosine"), 3
    z, generator = masked_canvas(50_000).tokens, seeded(2)
    for k in range(steps):
        t, s = (torch.full((len(z),), 1 - j / steps, dtype=torch.float64) for j in (k, k + 1))
        z = process.reverse_step(z, denoiser.log_probs(Canvas.of(z, MASK)), t, s, MASK, generator)
    assert chi_square(z, exact_law(denoiser, steps, process)) < CHI_SQUARE_26


def test_infilling_has_the_conditional_law():
    denoiser, start = Table(), (MASK, 1, MASK)
    out = write("ancestral", denoiser, Canvas.of(torch.tensor(start).repeat(50_000, 1), MASK), 2, 3)
    assert (out.tokens[:, 1] == 1).all()
    assert chi_square(out.tokens, exact_law(denoiser, 2, MaskedProcess(), start)) < 34  # 8 degrees of freedom, 99.99 %


def test_every_position_is_revealed_at_the_schedule_rate():
    steps, process = 5, MaskedProcess("cosine")
    transition = reveal_transitions(torch.Size([200, 1000]), steps, seeded(4), process)
    ends = 1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps
    for k, alpha in enumerate(process.alpha(ends)):
        assert float((transition <= k).double().mean()) == pytest.approx(float(alpha), abs=5e-3)


def dilated_transitions(open_: Tensor, steps: list[int], seed: int, process=LOG_LINEAR) -> Tensor:
    return Dilated().transitions(Canvas(torch.zeros(open_.shape), open_), torch.tensor(steps), process, seeded(seed))


def test_dilated_passes_halve_the_distances_and_are_of_equal_size():
    where = torch.ones(64, 32, dtype=torch.bool)
    transition = dilated_transitions(where, [8] * 64, 4)
    assert (torch.nn.functional.one_hot(transition, 8).sum(1) == 4).all()
    for k, distance in enumerate((8, 4, 2, 2, 1, 1, 1)):  # between any two of the positions known after pass k
        gaps = [set((row <= k).nonzero().squeeze(1).diff().tolist()) for row in transition]
        assert all(min(found) == distance for found in gaps)
    assert len({tuple(row) for row in transition.tolist()}) == 8, "rotated at random"


def test_dilated_order_skips_what_is_given_and_follows_the_schedule():
    where = torch.rand(50, 21, generator=seeded(1)) < 0.7
    transition = dilated_transitions(where, [3] * 25 + [5] * 25, 2, MaskedProcess("cosine"))
    for row, chosen, steps in zip(transition, where, [3] * 25 + [5] * 25, strict=True):
        ends = MaskedProcess("cosine").alpha(1 - torch.arange(1, steps + 1) / steps)
        for k, part in enumerate(ends.tolist()):
            assert abs(int((row[chosen] <= k).sum()) - part * int(chosen.sum())) <= 0.5 + 1e-6


def test_dilated_order_one_position_a_pass_has_the_denoisers_own_law():
    source = random_source(3, 1, 1.5, seed=0, length=4)
    out = write("dilated", source, masked_canvas(20_000, 4), 4, 5)
    rows = source.all_rows(4)
    place = (out.tokens * 3 ** torch.arange(3, -1, -1)).sum(1)
    seen = torch.bincount(place, minlength=81) / len(place)
    expected = source.log_likelihood(rows).exp()
    assert float((20_000 * (seen - expected) ** 2 / expected).sum()) < 143  # 80 degrees of freedom, 99.998 %


def test_events_are_numbered_densely_in_order():
    transition = torch.tensor([[7, 2, 7, 900], [5, 5, 5, 5], [1, 2, 3, 4]])
    masked = torch.tensor([[True, True, True, False], [True] * 4, [False] * 4])
    event = number_events(transition, masked)
    events = event.amax(1) + 1
    assert event.tolist() == [[1, 0, 1, -1], [0, 0, 0, 0], [-1, -1, -1, -1]]
    assert events.tolist() == [2, 1, 0]


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("steps", [1, 3, 8, 1024])
def test_prompts_are_kept_masks_filled_and_passes_bounded(name, steps):
    denoiser = Fixed(torch.tensor([0.2, 0.3, 0.5]), 16)
    canvas = torch.randint(0, 3, (32, 16), generator=seeded(6))
    hidden = torch.rand(32, 16, generator=seeded(7)) < torch.linspace(0, 1, 32)[:, None]
    hidden[0] = False
    before = canvas.masked_fill(hidden, 3)
    given = Canvas.of(before.clone(), 3)
    out = write(name, denoiser, given, steps, 8)
    assert torch.equal(given.tokens, before), "the caller's canvas was written to"
    assert torch.equal(given.open, hidden), "the caller's canvas was written to"
    assert not out.canvas.open.any()
    assert torch.equal(out.tokens[~hidden], canvas[~hidden])
    assert (out.tokens < 3).all()
    bound = hidden.sum(1).clamp(max=steps)
    assert (out.nfe <= (torch.where(hidden.any(1), steps, 0) if SAMPLERS[name].edits else bound)).all()
    assert out.nfe[0] == 0
    assert ((out.nfe > 0) == hidden.any(1)).all()
    assert (out.critic_nfe == 0).all()
    assert out.query_tokens == int(out.nfe.sum()) * 16
    assert sum(len(z) for z in denoiser.forwarded) == int(out.nfe.sum()), "passes were not what was counted"
    if name == "top_k":
        assert torch.equal(out.nfe, bound), "top-k takes exactly the steps it was given"


@pytest.mark.parametrize("name", ALONE)
def test_identical_rows_share_one_forward_row_but_each_counts_a_pass(name):
    denoiser = Fixed(torch.tensor([0.2, 0.3, 0.5]), 16)
    out = write(name, denoiser, masked_canvas(64, 16), 1, 9)
    assert [len(z) for z in denoiser.forwarded] == [1]
    assert out.nfe.tolist() == [1] * 64
    assert len({tuple(row) for row in out.tokens.tolist()}) == 64, "rows must still be drawn independently"


@pytest.mark.parametrize("name", ALONE)
def test_same_seed_same_text_and_zero_steps_refused(name):
    denoiser = Table()
    first, again, other = (write(name, denoiser, masked_canvas(50), 2, s).tokens for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(UserError, match="steps is 0"):
        write(name, denoiser, masked_canvas(2), 0, 1)


def test_top_k_commits_the_most_probable_and_spreads_the_remainder_over_the_first_steps():
    sure = torch.tensor([0.9999999, 0.999, 0.99999, 0.99, 0.999999, 0.9, 0.9999])
    denoiser = Fixed(torch.stack([sure, 1 - sure], 1), 7)
    out = write("top_k", denoiser, masked_canvas(1, 7, 2), 3, 0)
    assert out.tokens.tolist() == [[0] * 7]
    seen = [(z[0] == 2).nonzero().squeeze(1).tolist() for z in denoiser.forwarded]
    assert seen == [[0, 1, 2, 3, 4, 5, 6], [1, 3, 5, 6], [3, 5]]


def test_exact_draws_reach_tokens_of_tiny_probability():
    tiny = 1e-9
    log_probs = torch.tensor([0.5, tiny, 0.5 - tiny], dtype=torch.float64).log()
    uniforms = torch.tensor([-1e-12, 1e-12, tiny / 2, 0.999 * tiny, 1.001 * tiny], dtype=torch.float64) + 0.5
    assert categorical(log_probs.expand(5, -1), uniforms).tolist() == [0, 1, 1, 1, 2]
    never = torch.tensor([-torch.inf, 0.0, -torch.inf])
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert categorical(never.expand(2, -1), edges).tolist() == [1, 1]


def test_temperature_raises_every_drawn_law_to_its_inverse():
    law = torch.tensor([0.6, 0.3, 0.1])
    out = write("ancestral", Fixed(law, 100), masked_canvas(2_000, 100, 3), 4, 2, temperature=0.5)
    seen = torch.bincount(out.tokens.flatten(), minlength=3) / out.tokens.numel()
    tempered = law**2 / (law**2).sum()
    torch.testing.assert_close(seen, tempered, rtol=0, atol=0.005)
    torch.testing.assert_close(out.log_prob, tempered.log()[out.tokens].double().sum(1))
    assert SAMPLERS["ancestral"](temperature=0.5).label == "ancestral, temperature 0.5"


@pytest.mark.parametrize("name", ALONE)
def test_log_prob_is_given_only_where_it_is_that_of_the_law_drawn_from(name):
    law = torch.tensor([0.2, 0.3, 0.5])
    out = write(name, Fixed(law, 16), masked_canvas(8, 16), 4, 1)
    if name in ("ancestral", "joint", "dilated", "planner", "threshold", "factor", "entropy_bound"):
        torch.testing.assert_close(out.log_prob, law.log()[out.tokens].double().sum(1))
    else:
        assert out.log_prob is None
    assert write(name, Fixed(law, 16), masked_canvas(8, 16), 4, 1, draw="float32-gumbel").log_prob is None
    assert write("threshold", Fixed(law, 16), masked_canvas(8, 16), 4, 1, confidence="drawn").log_prob is None


def test_sampler_draws_rare_tokens_at_their_rate():
    rare = torch.tensor([1 - 1e-4 - 1e-3, 1e-4, 1e-3], dtype=torch.float64)
    out = write("ancestral", Fixed(rare, 100), masked_canvas(10_000, 100, 3), 1, 10)
    assert int((out.tokens == 1).sum()) == pytest.approx(100, abs=40)  # 4 standard deviations
    assert int((out.tokens == 2).sum()) == pytest.approx(1000, abs=126)


def test_float32_gumbel_can_never_draw_a_rare_token(monkeypatch):
    def luckiest(generator, *shape, dtype=torch.float64):
        noise = torch.zeros(shape, dtype=dtype)
        noise[..., 0] = 1 - torch.finfo(dtype).eps / 2
        return noise

    monkeypatch.setattr(randomness, "uniform", luckiest)
    for probability, drawn in ((1e-6, 0), (1e-9, 1)):
        log_probs = torch.tensor([[math.log(probability), math.log(1 - probability)]])
        assert gumbel_float32(log_probs, seeded(0)).tolist() == [drawn]


@pytest.mark.parametrize("name", ALONE)
def test_the_draw_is_the_one_that_was_named(name):
    denoiser = Fixed(torch.tensor([0.2, 0.3, 0.5]), 8)
    log_probs = denoiser.law.repeat(4, 1)
    for draw in ("exact", "float32-gumbel"):
        out = write(name, denoiser, masked_canvas(4, 8), 1, 11, draw=draw)
        replay = seeded(11)
        if name in ("ancestral", "random_start", "remdm"):
            uniform(replay, 4, 8)  # when each position is revealed
        elif name == "dilated":
            uniform(replay, 4, 1)  # the rotation
        if draw == "exact":
            expected = categorical(log_probs, uniform(replay, 32))
        elif name == "joint":
            expected = token_or_mask_float32(log_probs, torch.ones(32), torch.zeros(32), replay)
        else:
            expected = gumbel_float32(log_probs, replay)
        assert torch.equal(out.tokens.flatten(), expected)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("draw", ["exact", "float32-gumbel"])
def test_draws_are_the_same_in_chunks(name, draw, monkeypatch):
    whole = write(name, Table(), masked_canvas(20), 2, 12, draw=draw)
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    assert torch.equal(write(name, Table(), masked_canvas(20), 2, 12, draw=draw).tokens, whole.tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_log_probabilities_of_a_chunk_are_gone_before_those_of_the_next(temperature):
    storages = []

    def law(features):
        assert [storage for storage in storages if storage() is not None] == []
        log_probs = features.log_softmax(-1)
        storages.append(weakref.ref(log_probs.untyped_storage()))
        return log_probs

    uniforms = torch.rand(12, dtype=torch.float64)
    drawn = Ancestral(temperature=temperature).tokens(law, 3, uniforms, torch.Generator(), torch.randn(12, 7))
    assert len(storages) == 3
    assert drawn.tokens.shape == (12,)
