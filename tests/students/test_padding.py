"""Prompts of different lengths in one batch, padded: law, texts and passes are those of each prompt alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from students.fill import fill
from students.planner import add_planner
from students.samplers import (
    Ancestral,
    Dilated,
    EntropyBound,
    Factor,
    Planner,
    RandomStart,
    Threshold,
    TopK,
)
from students.samplers.edit import Edit
from teachers.canvas import Canvas
from teachers.denoiser import end_ids
from teachers.families import resolve
from teachers.randomness import RowStreams
from tests.golden.places import COPIES
from tests.networks import mdlm, shape, stock

WRITE = 10
LENGTHS = [3, 9, 6, 1]
KINDS = {
    "full": {}, "shift": {"shift": True}, "block": {"attention": "block", "block_size": 4},
    "block and shift": {"attention": "block", "block_size": 4, "shift": True},
}  # fmt: skip
RELEASES = {
    "llada": None, "dream": None, "rnd1": None, "diffullama": None, "diffugpt": None, "a2d": None, "a2d in blocks": 4,
    "sdar": 4, "fast-dllm-v2": 8, "llada2": 8,
}  # fmt: skip
"""With the block size that they are read with."""
RULES = {
    "ancestral": Ancestral(), "dilated": Dilated(), "random start": RandomStart(random_share=0.5),
    "top-k": TopK(), "top-k in blocks": TopK(block_length=4), "random order": TopK(order="random"),
    "dilated in blocks": Dilated(block_length=4, budget="block"), "threshold": Threshold(threshold=0.3),
    "threshold in blocks": Threshold(threshold=0.3, block_length=4, stop=True), "factor": Factor(),
    "entropy bound": EntropyBound(gamma=0.5), "edit": Edit(block_length=4), "planner": Planner(),
    "top-k that stops": TopK(stop=True),
}  # fmt: skip


@cache
def network(name):
    """In float64, so that the only differences are those of what is computed."""
    if name in KINDS:
        return stock(40, 64, 39, sizes=shape(32, 2, initializer_range=0.3), eos_id=7, **KINDS[name]).double()
    if name == "transformer with time":
        torch.manual_seed(3)
        return mdlm(40, 64, time_conditioned=True).double()
    family, size = name.removesuffix(" in blocks"), RELEASES[name]
    options = {"family": "diffullama"} if family == "diffullama" else {}
    checkpoint = resolve(str(COPIES / family / "checkpoint"), **options)
    denoiser = checkpoint.load(**({} if size is None else {"block_size": size})).requires_grad_(False).double()
    denoiser.network.set_experts_implementation("eager")  # the other one knows no float64
    return denoiser


def multiple(denoiser):
    """What padding on the left must come in: blocks, where they are columns of the canvas."""
    return denoiser.spec.block_size if denoiser.columns and denoiser.spec.block_size else 1


@cache
def prompts(name):
    generator, words = torch.Generator().manual_seed(1), network(name).spec.tokens("cpu")
    return [words[torch.randint(len(words), (n,), generator=generator)].tolist() for n in LENGTHS]


def sides(name):
    return ["right"] if name == "diffugpt" else ["left", "right"]  # learned positions of columns: never on the left


CASES = [(n, s) for n in [*KINDS, "transformer with time", *RELEASES] for s in sides(n)]


def together_and_alone(name, side):
    denoiser, texts = network(name), prompts(name)
    together = Canvas.prompted(texts, WRITE, denoiser.spec.mask_id, padding=side, multiple=multiple(denoiser), pad_id=1)
    alone = [Canvas.prompted([text], len(text) + WRITE, denoiser.spec.mask_id) for text in texts]
    assert not together.real.all()
    return denoiser, together, alone


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_law_after_a_prompt_does_not_depend_on_padding(name, side):
    denoiser, together, alone = together_and_alone(name, side)
    with torch.no_grad():
        law = denoiser.log_probs(together)
        for row, canvas in enumerate(alone):
            torch.testing.assert_close(law[row, together.real[row]], denoiser.log_probs(canvas)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*KINDS, "transformer with time"])
def test_a_text_does_not_depend_on_padding(name, rule):
    for side in sides(name):
        check_texts(name, side, rule)


@pytest.mark.parametrize("rule", ["dilated", "threshold in blocks"])
@pytest.mark.parametrize("name", RELEASES)
def test_a_text_of_a_release_does_not_depend_on_padding(name, rule):
    for side in sides(name):
        check_texts(name, side, rule)


def check_texts(name, side, rule):
    """Tokens, passes and the bound of each row are those of the row alone: greedy in 4 steps, and drawn in 7."""
    denoiser, together, alone = together_and_alone(name, side)
    if rule == "planner":
        torch.manual_seed(0)
        denoiser = add_planner(denoiser, 4).double()
    for draw, steps in (("greedy", 4), ("exact", 7)):
        stop = RULES[rule].stop and bool(end_ids(denoiser))
        sampler = RULES[rule].model_copy(update={"draw": draw, "stop": stop})
        streams = RowStreams(5, (steps,), range(len(together)))
        filled = fill(denoiser, together, sampler, steps, streams)
        for row, canvas in enumerate(alone):
            own = fill(denoiser, canvas, sampler, steps, RowStreams(5, (steps,), [row]))
            assert filled.tokens[row, together.real[row]].tolist() == own.tokens[0].tolist(), (side, steps, row)
            assert filled.nfe[row] == own.nfe[0]
            if own.log_prob is not None:
                torch.testing.assert_close(filled.log_prob[row : row + 1], own.log_prob, rtol=1e-6, atol=1e-5)
        assert torch.equal(filled.tokens[~together.real], together.tokens[~together.real]), "padding is kept"


def test_padding_of_whole_blocks():
    """On the left as many whole blocks as fit, and on the right what is over."""
    canvas = Canvas.prompted([[5] * 9, [5] * 3], 4, 8, padding="left", multiple=4, pad_id=0)
    assert canvas.tokens.tolist() == [[5] * 9 + [8] * 4, [0] * 4 + [5] * 3 + [8] * 4 + [0] * 2]
    assert canvas.real.tolist() == [[True] * 13, [False] * 4 + [True] * 7 + [False] * 2]
