"""What the released samplers' rules are made of: timetables, orders, filters, blocks, ends and edits, by definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from students.drawing import Drawing
from students.fill import fill
from students.rollout import StateRecorder
from students.samplers import (
    RELEASED,
    Ancestral,
    Daedal,
    Dilated,
    Edit,
    EntropyBound,
    Planner,
    RandomStart,
    Remdm,
    Rgas,
    Threshold,
    TopK,
    released_sampler,
)
from students.samplers.blocks import Blocks
from students.samplers.factor import Factor
from students.samplers.timetable import tokens_per_pass
from teachers.canvas import Canvas
from teachers.denoiser import end_ids
from teachers.errors import UserError
from teachers.randomness import RowStreams
from tests.networks import shape, stock
from tests.tabular import TabularDenoiser

MASK = 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- timetables -------------------------------------------------------------------------------------------------------

PUBLISHED = [
    ("llada", 16, 6, (3, 3, 3, 3, 2, 2)),
    ("sdar", 8, 3, (3, 3, 2)),
    ("dllm", 16, 6, (3, 3, 2, 3, 2, 3)),  # 10/4 is rounded to 2, the even number
    ("dllm", 4, 3, (1, 1, 2)),  # 3/2 is a little less in float32
    ("dllm", 2, 6, (1, 1)),  # passes that would commit none are left out
    ("dream", 16, 6, (2, 2, 2, 3, 3, 4)),
    ("dream", 16, 16, (1,) * 14 + (2,)),  # 0, 1, …, 1, 2 as published
    ("rnd1", 15, 6, (3, 2, 3, 2, 3, 2)),
]


@pytest.mark.parametrize(("timetable", "total", "steps", "expected"), PUBLISHED)
def test_timetables_are_those_of_the_releases(timetable, total, steps, expected):
    assert tokens_per_pass(timetable, total, steps) == expected


@pytest.mark.parametrize("timetable", ["llada", "sdar", "dllm", "dream", "rnd1"])
def test_every_pass_commits_something_and_all_of_them_everything(timetable):
    for total in range(1, 40):
        for steps in range(1, 45):
            counts = tokens_per_pass(timetable, total, steps)
            assert sum(counts) == total
            assert min(counts) >= 1
            assert len(counts) <= min(steps, total)


def test_rounding_is_that_of_the_published_arithmetic():
    """Which is torch's, partly in float32."""
    for total in (1, 2, 3, 5, 8, 13, 16, 32, 50, 64):
        for steps in range(1, 33):
            dream, dllm, left = [], [], [total, total]
            times = torch.linspace(1, 1e-3, steps + 1)
            for i in range(steps):
                count = int(left[0] * (1 - times[i + 1] / times[i])) if i < steps - 1 else left[0]
                dream.append(count)
                t, s = (torch.tensor((steps - k) / steps) for k in (i, i + 1))
                stay = ((1 - (1 - s)) / (1 - (1 - t))).item()
                dllm.append(min(left[1], int(torch.tensor(left[1], dtype=torch.float64).mul(1 - stay).round())))
                left = [left[0] - dream[-1], left[1] - dllm[-1]]
            assert tokens_per_pass("dream", total, steps) == tuple(n for n in dream if n), (total, steps)
            assert tokens_per_pass("dllm", total, steps) == tuple(n for n in dllm if n), (total, steps)


# --- how tokens are drawn ---------------------------------------------------------------------------------------------


def test_filters_keep_the_most_probable_tokens_and_their_proportions():
    own = torch.tensor([[0.4, 0.05, 0.3, 0.25, 0.0]]).log()
    assert torch.equal(Drawing().drawn_law(own), own)

    def law(**settings):
        return Drawing(**settings).drawn_law(own).exp()[0]

    torch.testing.assert_close(law(top_k=2), torch.tensor([4, 0, 3, 0, 0]) / 7)
    torch.testing.assert_close(law(top_k=9), own.exp()[0])
    torch.testing.assert_close(law(top_p=0.65), torch.tensor([4, 0, 3, 0, 0]) / 7)
    torch.testing.assert_close(law(top_p=0.75), torch.tensor([8, 0, 6, 5, 0]) / 19)
    torch.testing.assert_close(law(top_p=0.01), torch.tensor([1.0, 0, 0, 0, 0]))
    torch.testing.assert_close(law(top_p=1.0), own.exp()[0])
    # at first the temperature, then the most probable tokens, and then as few of these as are asked for
    squares = torch.tensor([0.4, 0, 0.3, 0.25, 0]) ** 2
    squares[3] = 0  # 0.16 and 0.09 of 0.3125 are more than 0.6
    torch.testing.assert_close(law(temperature=0.5, top_k=3, top_p=0.6), squares / 0.25)


def test_what_is_drawn_has_the_filtered_law():
    canvas, denoiser = Canvas.blank(20_000, 1, MASK), TabularDenoiser(MASK + 1, 1, 0)
    own = denoiser.log_probs(Canvas.blank(1, 1, MASK))[0, 0]
    for settings in ({"top_k": 2}, {"top_p": 0.7}):
        rule = TopK(**settings)
        seen = torch.bincount(fill(denoiser, canvas, rule, 1, seeded(0)).tokens[:, 0], minlength=MASK + 1) / 20_000
        torch.testing.assert_close(seen.double(), rule.drawn_law(own[None])[0].exp(), rtol=0, atol=0.015)
    assert TopK(top_k=2, top_p=0.5).label == "top_k, top-k 2, top-p 0.5"


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_begin_behind_the_prompt_or_where_the_attentions_do():
    tokens = torch.tensor([[0, MASK, MASK, MASK, MASK, MASK], [0, 0, 0, MASK, 0, MASK]])
    canvas, steps = Canvas.of(tokens, MASK), torch.tensor([6, 6])
    full, block, shifted = (
        stock(5, 6, MASK),
        stock(5, 6, MASK, attention="block", block_size=4),
        stock(5, 6, MASK, attention="block", block_size=2, shift=True),
    )
    assert Blocks(canvas, full, steps, 2).number.tolist() == [[-1, 0, 0, 1, 1, 2], [-1, -1, -1, 0, -1, 1]]
    assert Blocks(canvas, block, steps, 2).number.tolist() == [[-1, 0, 1, 1, 2, 2], [-1, -1, -1, 0, -1, 1]]
    assert Blocks(canvas, full, steps, None).number.tolist() == [[-1, 0, 0, 0, 0, 0], [-1, -1, -1, 0, -1, 0]]
    assert Blocks(canvas, shifted, steps, 2).first.tolist() == [[True, False] * 3] * 2


@pytest.mark.parametrize("columns", [False, True])
def test_blocks_count_padding_where_the_attention_does(columns):
    tokens = torch.tensor([[0, 0, MASK, MASK, MASK]])
    canvas = Canvas.of(tokens, MASK, torch.tensor([[False, True, True, True, True]]))
    denoiser = stock(5, 5, MASK, attention="block", block_size=2)
    denoiser.columns = columns
    expected = [[-1, -1, 0, 0, 1]] if columns else [[-1, -1, 0, 1, 1]]
    assert Blocks(canvas, denoiser, torch.tensor([3]), 2).number.tolist() == expected


def test_a_rows_passes_are_shared_out_among_its_blocks():
    asked = []
    rule = TopK(order="sequential", block_length=4)
    filled = fill(
        TabularDenoiser(3, 9, 0), Canvas.blank(1, 9, 2), rule, 5, seeded(0),
        record=lambda one: asked.append((one.asked.positions[0].nonzero()[:, 0].tolist(), int(one.commit.sum()))),
    )  # fmt: skip
    assert asked == [
        ([0, 1, 2, 3], 2), ([2, 3], 2), ([4, 5, 6, 7], 2), ([6, 7], 2), ([8], 1)
    ]  # fmt: skip
    assert filled.nfe.tolist() == [5]


def test_the_first_token_of_a_block_is_alone_where_only_the_block_before_predicts_it():
    denoiser = stock(5, 8, MASK, attention="block", block_size=4, shift=True).requires_grad_(False)
    canvas = Canvas.of(torch.tensor([[0, 1, MASK, MASK, MASK, MASK, MASK, MASK]]), MASK)

    def asked(rule, steps):
        seen = []
        fill(denoiser, canvas, rule, steps, seeded(0), record=seen.append)
        return [one.asked.positions[0].nonzero()[:, 0].tolist() for one in seen]

    at_once = Threshold(threshold=1e-9, block_length=4)
    assert asked(at_once, 8) == [[2, 3], [4], [5, 6, 7]]
    assert asked(at_once, 2) == [[2, 3], [4, 5, 6, 7]], "a block that has one pass is written in it"
    small = Threshold(threshold=1e-9, block_length=2)
    assert asked(small, 9) == [[2, 3], [4], [5], [6, 7]], "small blocks begin within the attention's"


@pytest.mark.parametrize("rule", [Ancestral, Dilated, TopK])
@torch.no_grad()
def test_under_a_shift_every_token_has_the_law_of_its_canvas_whenever_a_blocks_first_one_is_written(rule):
    """A planned rule writes it when its plan says so, from the block before; what it knows of its text is less."""
    denoiser = stock(5, 16, MASK, attention="block", block_size=4, shift=True, sizes=shape(5, initializer_range=0.6))
    total, late = torch.zeros(20, dtype=torch.float64), 0

    def record(one):
        nonlocal late
        law = denoiser.log_probs(one.before).gather(-1, one.after()[..., None]).squeeze(-1).double()
        total.index_add_(0, one.asked.rows, law.masked_fill(~one.commit, 0).sum(1))
        others = (one.before.tokens != MASK) | one.commit
        late += int((one.commit & others.view(-1, 4, 4)[..., 1:].any(2).repeat_interleave(4, 1))[:, ::4].sum())

    sampler = rule(block_length=4, **({"order": "random"} if rule is TopK else {}))
    filled = fill(denoiser, Canvas.blank(20, 16, MASK), sampler, 12, RowStreams(0, (), range(20)), record=record)
    torch.testing.assert_close(filled.log_prob, total, rtol=0, atol=1e-4)
    assert (late > 0) == (rule is not TopK)


# --- ends -------------------------------------------------------------------------------------------------------------


class Ending(TabularDenoiser):
    """Whose end token is 0."""

    def __init__(self, length: int):
        super().__init__(4, length, 1, sharpness=0.5)
        self.spec = replace(self.spec, eos_id=0)


def test_a_text_ends_with_the_block_that_holds_an_end_token():
    canvas, passes = Canvas.blank(200, 6, 3), []
    rule = TopK(block_length=2, stop=True)
    filled = fill(Ending(6), canvas, rule, 6, seeded(0), record=passes.append)
    going_on = fill(Ending(6), canvas, rule.model_copy(update={"stop": False}), 6, seeded(0))
    assert not filled.canvas.open.any()
    ends = (filled.tokens == 0).view(200, 3, 2).any(2)
    blocks = torch.where(ends.any(1), ends.int().argmax(1) + 1, 3)
    assert torch.equal(filled.nfe, 2 * blocks)
    assert set(blocks.tolist()) == {1, 2, 3}
    for row, count in enumerate(blocks.tolist()):
        assert (filled.tokens[row, 2 * count :] == 0).all()
    assert (going_on.nfe == 6).all()


@pytest.mark.parametrize("rule", [Ancestral, Dilated, TopK])
def test_planned_rules_end_texts_too_under_a_budget_of_each_block(rule):
    canvas = Canvas.blank(200, 6, 3)
    filled = fill(Ending(6), canvas, rule(block_length=2, stop=True, budget="block"), 1, seeded(0))
    ends = (filled.tokens == 0).view(200, 3, 2).any(2)
    blocks = torch.where(ends.any(1), ends.int().argmax(1) + 1, 3)
    assert torch.equal(filled.nfe, blocks)
    assert set(blocks.tolist()) == {1, 2, 3}
    for row, count in enumerate(blocks.tolist()):
        assert (filled.tokens[row, 2 * count :] == 0).all()


def test_every_end_token_of_the_release_ends_a_text():
    denoiser = Ending(6)
    denoiser.companions = {"generation_config.json": b'{"eos_token_id": [1, 0]}'}
    assert end_ids(denoiser) == [0, 1]
    filled = fill(denoiser, Canvas.blank(200, 6, 3), TopK(block_length=2, stop=True), 6, seeded(0))
    ends = (filled.tokens < 2).view(200, 3, 2).any(2)
    blocks = torch.where(ends.any(1), ends.int().argmax(1) + 1, 3)
    assert torch.equal(filled.nfe, 2 * blocks)
    for row, count in enumerate(blocks.tolist()):
        assert (filled.tokens[row, 2 * count :] == 0).all(), "filled up with the first of them"


@pytest.mark.parametrize("rule", [Ancestral, Dilated, TopK, Planner])
def test_each_block_has_steps_of_its_own_whatever_the_number_of_blocks(rule):
    """Two tokens of a block in two steps, all at once in one; a block that is open in part takes no more passes."""
    canvas = Canvas.of(torch.tensor([[2, 2, 2, 2, 2, 2], [0, 2, 2, 2, 2, 2], [0, 0, 0, 0, 2, 2]]), 2)
    denoiser = TabularDenoiser(3, 6, 0)
    filled = fill(denoiser, canvas, rule(block_length=2, budget="block"), 1, seeded(0))
    assert filled.nfe.tolist() == [3, 3, 1]
    many = fill(denoiser, canvas, rule(block_length=2, budget="block"), 2**20, seeded(0))
    if rule is Planner:
        return
    assert many.nfe.tolist() == [6, 5, 2]


def test_an_end_token_of_the_prompt_ends_nothing():
    canvas = Canvas.of(torch.tensor([[0, 3, 3, 3, 3]]).expand(50, 5), 3)
    filled = fill(Ending(5), canvas, TopK(block_length=2, stop=True), 4, seeded(1))
    assert (filled.nfe >= 2).all()
    assert (filled.nfe == 4).any()


@pytest.mark.parametrize(
    "rule",
    [
        Ancestral(), Dilated(), RandomStart(random_share=0.5), TopK(), TopK(order="sequential"),
        Threshold(threshold=0.6), Factor(), EntropyBound(gamma=0.5), Planner(),
    ],
    ids=lambda rule: rule.label,
)  # fmt: skip
def test_without_blocks_a_text_ends_once_all_is_written_up_to_an_end_token(rule):
    """The texts are those of the same noise without it, pass by pass; the second one of a prompt with an end token."""
    canvas = Canvas.of(torch.tensor([[3] * 8, [0, *[3] * 7], [1, 3, 3, 3, 3, 1, 3, 3]]).repeat(40, 1), 3)
    plain = StateRecorder(canvas, 9)  # a state more than passes
    fill(Ending(8), canvas, rule, 8, RowStreams(0, (), range(120)), record=plain)
    stopping = rule.model_copy(update={"stop": True})
    filled = fill(Ending(8), canvas, stopping, 8, RowStreams(0, (), range(120)))
    left = canvas.open[:, None] & ~plain.commits[:, :8].cumsum(1).bool()  # (B, M, L) open after each pass
    after = plain.states[:, 1:]
    ended = (canvas.open[:, None] & (left.cumsum(2) == 0) & (after == 0)).any(2) | ~left.any(2)
    nfe = ended.int().argmax(1) + 1
    assert torch.equal(filled.nfe, nfe)
    row = torch.arange(120)
    assert torch.equal(filled.tokens, torch.where(left[row, nfe - 1], 0, after[row, nfe - 1]))
    assert not filled.canvas.open.any()
    assert float(nfe.double().mean()) < float(plain.commits.any(2).sum(1).double().mean())


def test_stop_needs_an_end_token_and_blocks_where_tokens_may_change():
    for rule in (Edit, Remdm):
        with pytest.raises(ValidationError, match="stop ends a text after one of its blocks; set block_length"):
            rule(stop=True)
    for rule in (Rgas, Daedal):
        with pytest.raises(ValidationError, match="ends none of them early; leave stop out"):
            rule(stop=True)
    with pytest.raises(UserError, match=r"this model has none; set sampler\.stop=false"):
        fill(TabularDenoiser(3, 2, 0), Canvas.blank(1, 2, 2), TopK(block_length=1, stop=True), 2, seeded(0))


def test_fewer_passes_than_blocks_are_refused():
    with pytest.raises(UserError, match="steps is 2, but a text has 3 blocks of 2 tokens"):
        fill(TabularDenoiser(3, 6, 0), Canvas.blank(1, 6, 2), TopK(block_length=2), 2, seeded(0))


# --- edits ------------------------------------------------------------------------------------------------------------


def edited(denoiser, tokens, threshold, editing, post_steps, length):
    """LLaDA2.1's loop on one row, greedily: every canvas that a pass reads, and the text."""
    row, read = list(tokens), []
    opened = [token == MASK for token in row]
    begin = opened.index(True)
    for start in range(begin, len(row), length):
        places, post = [i for i in range(start, min(start + length, len(row))) if opened[i]], 0
        while places:
            masked = [i for i in places if row[i] == MASK]
            post += not masked
            if post > post_steps:
                break
            read.append(list(row))
            largest, best = denoiser.log_probs(Canvas.of(torch.tensor([row]), MASK))[0].exp().max(1)
            p = largest.tolist()
            sure = [i for i in masked if p[i] > threshold] or sorted(masked, key=lambda i: -p[i])[:1]
            other = [i for i in places if i not in masked and p[i] > editing and best[i] != row[i]]
            for i in [*sure, *other]:
                row[i] = int(best[i])
            if not masked and not other:
                break
    return read, row


@pytest.mark.parametrize("post_steps", [0, 1, 5])
@pytest.mark.parametrize("length", [2, 5])
def test_edits_go_on_until_nothing_changes(length, post_steps):
    changes = 0
    for seed in range(30):
        denoiser, passes = TabularDenoiser(MASK + 1, 5, seed), []
        tokens = [0, MASK, MASK, MASK, 1] if seed % 2 else [MASK] * 5
        rule = Edit(draw="greedy", threshold=0.5, editing_threshold=0.4, post_steps=post_steps, block_length=length)
        filled = fill(denoiser, Canvas.of(torch.tensor([tokens]), MASK), rule, 60, seeded(0), record=passes.append)
        read, text = edited(denoiser, tokens, 0.5, 0.4, post_steps, length)
        assert [one.before.tokens[0].tolist() for one in passes] == read
        assert filled.tokens[0].tolist() == text
        changes += sum(bool((one.commit & ~one.before.open).any()) for one in passes)
    assert changes > 10, "hardly an edit"


def test_edits_keep_within_their_steps():
    canvas = Canvas.blank(100, 5, MASK)
    rule = Edit(threshold=0.5, editing_threshold=0.3, block_length=5)
    for steps in (1, 3, 9):
        filled = fill(TabularDenoiser(MASK + 1, 5, 0), canvas, rule, steps, seeded(2))
        assert not filled.canvas.open.any()
        assert (filled.tokens != MASK).all()
        assert filled.nfe.max() <= steps
    assert filled.nfe.max() > 5


# --- settings and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (TopK, {"order": "entropi"}), (TopK, {"timetable": "didi"}), (TopK, {"block_length": 0}), (TopK, {"top_k": 0}),
        (TopK, {"top_p": 0.0}), (TopK, {"top_p": 1.1}), (Factor, {"factor": 0.0}), (Edit, {"editing_threshold": 1.5}),
        (Edit, {"post_steps": -1}), (Rgas, {"block_length": 4}), (Edit, {"stop": True}),
        (Ancestral, {"budget": "block"}),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(rule, settings):
    with pytest.raises(ValidationError):
        rule(**settings)


def test_labels_say_what_a_reader_must_know():
    assert RELEASED["dream"].label == "top_k, temperature 0.2, top-p 0.95, entropy order, dream's timetable"
    sdar = "threshold 0.85, of the drawn token, blocks of 4, at least sdar's timetable"
    assert RELEASED["sdar"].label == sdar
    assert RELEASED["llada2.1"].label == "edit 0.95/0.9, greedy, blocks of 32"
    assert TopK().label == "top_k"


def test_a_released_sampler_writes_in_the_blocks_of_the_model():
    block = stock(5, 16, MASK, attention="block", block_size=8, eos_id=1).spec
    assert released_sampler("sdar", block) == Threshold(**{**RELEASED["sdar"].model_dump(), "block_length": 8})
    assert released_sampler("fast-dllm-v2", block).block_length == 8
    full = stock(5, 16, MASK, sizes=shape()).spec
    assert released_sampler("a2d", full).block_length == 32
    assert not released_sampler("llada2", full).stop, "there is no end token"
    assert released_sampler("mdlm", full) is None
