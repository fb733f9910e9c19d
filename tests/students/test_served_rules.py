"""What inference engines run on a block student, by their own loops; and every rule greedy and drawn, in blocks."""

from __future__ import annotations

import pytest
import torch

from students.fill import fill
from students.samplers import (
    SERVED,
    Ancestral,
    EntropyBound,
    Factor,
    Planner,
    Remdm,
    Sampler,
    Threshold,
    TopK,
    released_sampler,
)
from teachers.canvas import Canvas
from teachers.errors import UserError
from tests.networks import shape, stock
from tests.tabular import TabularDenoiser

VOCABULARY, MASK, END, SIZE, LENGTH = 12, 11, 0, 4, 24


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    sizes = shape(VOCABULARY, initializer_range=0.6)
    return stock(VOCABULARY, LENGTH, MASK, attention="block", block_size=SIZE, eos_id=END, sizes=sizes).requires_grad_(
        False
    )


def served(denoiser, prompt, certain):
    """An engine's loop on one request: block after block, whole passes, until a block holds the end; greedy."""
    row, passes = [*prompt, *[MASK] * (LENGTH - len(prompt))], 0
    for begin in range(len(prompt) // SIZE * SIZE, LENGTH, SIZE):
        written = [place for place in range(begin, begin + SIZE) if row[place] == MASK]
        for _ in range(SIZE):
            masked = [place for place in range(begin, begin + SIZE) if row[place] == MASK]
            if not masked:
                break
            p, tokens = denoiser.log_probs(Canvas.of(torch.tensor([row]), MASK))[0, masked].exp().max(-1)
            passes += 1
            sure = [n for n in range(len(masked)) if certain(float(p[n]))] or [int(p.argmax())]
            for n in {*sure, int(p.argmax())}:
                row[masked[n]] = int(tokens[n])
        if END in (row[place] for place in written):
            return [*row[: begin + SIZE], *[END] * (LENGTH - begin - SIZE)], passes
    return row, passes


@pytest.mark.parametrize(
    ("engine", "certain"), [("sglang", lambda p: p > 0.95), ("lmdeploy", lambda p: p >= 0.85)], ids=lambda x: str(x)[:8]
)
@torch.no_grad()
def test_a_served_sampler_is_the_engines_loop_token_for_token(student, engine, certain):
    prompts = [[], [1], [1, 2, 3, 4], [5, 6, 7, 8, 9, 3], [2] * 17]
    tokens = torch.tensor([[*prompt, *[MASK] * (LENGTH - len(prompt))] for prompt in prompts])
    rule = released_sampler(engine, student.spec)
    filled = fill(student, Canvas.of(tokens, MASK), rule, SIZE, torch.Generator().manual_seed(0))
    expected = [served(student, prompt, certain) for prompt in prompts]
    assert filled.tokens.tolist() == [row for row, _ in expected]
    assert filled.nfe.tolist() == [passes for _, passes in expected]
    assert len({passes for _, passes in expected}) > 1


def test_engines_serve_blocks_of_the_attention_only(student):
    full = TabularDenoiser(3, 4, 0)
    with pytest.raises(UserError, match="block_length is 'attention', but this model's attention is full"):
        SERVED["sglang"].model_copy(update={"stop": False}).fitted(full)
    assert SERVED["lmdeploy"].fitted(student).block_length == SIZE
    assert SERVED["sglang"].label == "threshold 0.95, greedy, blocks of the attention with steps of their own"


@pytest.mark.parametrize(("length", "said"), [(3, "cuts"), (6, "cuts"), (2, None), (4, None), (8, None)])
def test_blocks_do_not_cut_those_of_the_attention(student, length, said):
    rule = Ancestral(block_length=length)
    if said is None:
        assert rule.suited(student) == rule
        return
    with pytest.raises(UserError, match=f"block_length is {length}, which {said} the blocks of 4 tokens"):
        rule.suited(student)


RULES: dict[str, Sampler] = {
    "static": TopK(), "entropy": TopK(order="entropy"), "margin": TopK(order="margin"),
    "dynamic": Threshold(threshold=0.4, confidence="drawn"), "factor": Factor(factor=1.5),
    "entropy bound": EntropyBound(gamma=0.5), "ancestral": Ancestral(), "planner": Planner(),
    "remdm": Remdm(strategy="rescale", eta=0.3),
}  # fmt: skip


@pytest.mark.parametrize("draw", ["greedy", "exact"])
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}], ids=str)
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_every_rule_is_greedy_or_drawn_from_the_filtered_law_within_blocks(student, name, filters, draw):
    rule = RULES[name].model_copy(update={"block_length": 2, "budget": "block", "draw": draw, **filters})
    passes, canvas = [], Canvas.blank(12, 8, MASK)
    filled = fill(student, canvas, rule, 2, torch.Generator().manual_seed(1), record=passes.append)
    assert not filled.canvas.open.any()
    assert int(filled.nfe.max()) <= 8
    for one in passes:
        law = rule.drawn_law(student.head(one.features))
        assert torch.isfinite(law.gather(1, one.drawn.tokens[:, None])).all()
        if draw == "greedy":
            assert torch.equal(one.drawn.tokens, law.argmax(1))
        first = one.asked.positions.int().argmax(1) // 2
        assert (one.asked.positions.nonzero()[:, 1] // 2 == first[one.asked.positions.nonzero()[:, 0]]).all()
