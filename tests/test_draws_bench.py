"""The law that float32 draws have, by the formula of the bench, against draws on a grid coarse enough to be seen."""

from __future__ import annotations

import torch

from benchmarks.draws import drawn_law, entropy, zipf
from students.fill import fill
from students.samplers import Joint
from teachers import randomness
from tests.students.test_samplers import Fixed, masked_canvas, seeded


def test_the_formula_is_what_is_drawn_on_a_coarse_grid(monkeypatch):
    grid, steps, plain = 2.0**-10, 8, randomness.uniform

    def coarse(generator, *shape, dtype=torch.float64):
        return (plain(generator, *shape, dtype=dtype) / grid).floor() * grid

    monkeypatch.setattr(randomness, "uniform", coarse)
    law = torch.tensor([0.6, 0.3, 0.08, 0.01, 0.006, 0.003, 0.001])
    out = fill(Fixed(law, 64), masked_canvas(3_000, 64, 7), Joint(draw="float32-gumbel"), steps, seeded(0))
    seen = torch.bincount(out.tokens.flatten(), minlength=7) / out.tokens.numel()
    expected = drawn_law(law[None].double(), steps, grid)[0]
    deviation = (expected / out.tokens.numel()).sqrt()
    assert ((seen - expected).abs() < 5 * deviation + 0.03 * expected).all()
    assert float(expected[6]) < 0.75 * 0.001, "a rare token is drawn less often than the law says"


def test_one_draw_of_a_fine_grid_is_the_law_and_more_steps_draw_less_of_it():
    law = zipf(1_000)
    torch.testing.assert_close(drawn_law(law, 1), law, rtol=2e-3, atol=0)
    lost = [float(entropy(law) - entropy(drawn_law(law, steps))) for steps in (1, 16, 256)]
    assert 0 <= lost[0] < lost[1] < lost[2]
    torch.testing.assert_close(drawn_law(law, 64).sum(1), torch.ones(1, dtype=torch.float64))
