"""Token and mask drawn together: ancestral sampling if draws are exact, and less of the rare tokens in float32."""

from __future__ import annotations

import math

import pytest
import torch

from students.fill import fill
from students.samplers import Ancestral, Joint
from teachers import randomness
from teachers.errors import UserError
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams, gumbel_float32, token_or_mask_float32
from tests.students.test_samplers import CHI_SQUARE_26, Fixed, Table, chi_square, exact_law, masked_canvas, seeded


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_exact_draws_have_the_law_of_ancestral_sampling(steps, schedule):
    process, denoiser = MaskedProcess(schedule), Table()
    out = fill(denoiser, masked_canvas(100_000), Joint(), steps, seeded(1), process=process)
    assert chi_square(out.tokens, exact_law(denoiser, steps, process)) < CHI_SQUARE_26


def test_float32_draws_have_that_law_too_where_no_token_is_rare():
    rule, process = Joint(draw="float32-gumbel"), MaskedProcess()
    out = fill(Table(), masked_canvas(100_000), rule, 5, seeded(1), process=process)
    assert chi_square(out.tokens, exact_law(Table(), 5, process)) < CHI_SQUARE_26
    assert out.log_prob is None


def test_a_pass_is_made_only_after_something_was_written():
    denoiser = Fixed(torch.tensor([0.2, 0.3, 0.5]), 12)
    many = [fill(denoiser, masked_canvas(300, 12), rule, 64, seeded(2)).nfe for rule in (Joint(), Ancestral())]
    assert int(many[0].max()) <= 12
    assert many[0].double().mean() == pytest.approx(float(many[1].double().mean()), abs=0.2)
    streams = RowStreams(0, (1,), range(4))
    whole = fill(denoiser, masked_canvas(4, 12), Joint(), 64, streams).tokens
    alone = fill(denoiser, masked_canvas(2, 12), Joint(), 64, RowStreams(0, (1,), [2, 3])).tokens
    assert torch.equal(whole[2:], alone)


def test_float32_loses_with_many_steps_what_one_draw_does_not_lose(monkeypatch):
    def luckiest(generator, *shape, dtype=torch.float64):
        noise = torch.full(shape, 0.5, dtype=dtype)
        noise[..., 0] = 1 - torch.finfo(dtype).eps / 2
        return noise

    monkeypatch.setattr(randomness, "uniform", luckiest)
    steps, half = 1024, torch.tensor([0.5])  # half of the text is masked
    for probability, together, alone in ((1e-3, 0, 0), (1e-5, 2, 0), (1e-9, 2, 1)):
        law = torch.tensor([[math.log(probability), math.log(1 - probability)]])
        assert token_or_mask_float32(law, torch.tensor([1 / steps]), half, seeded(0)).tolist() == [together]
        assert gumbel_float32(law, seeded(0)).tolist() == [alone], "2 is the mask again"


def test_what_it_can_not_do_is_refused():
    denoiser = Fixed(torch.tensor([0.2, 0.3, 0.5]), 8)
    with pytest.raises(UserError, match=r"reads the time.*set sampler.name to ancestral"):
        fill(Table(by_time=True), masked_canvas(2), Joint(), 4, seeded(0))
    with pytest.raises(UserError, match=r"float32-gumbel.*set it in"):
        fill(denoiser, masked_canvas(2, 8), Joint(draw="float32-gumbel"), 4, RowStreams(0, (1,), range(2)))
