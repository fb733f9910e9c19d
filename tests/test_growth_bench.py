"""The plain loop that updates are compared with: it computes the same, at all positions."""

import pytest
import torch

from benchmarks.growth import METHODS, apart, exponent, ratio
from benchmarks.plain import MOVES, Plain, PlainUpdate
from benchmarks.update_worker import Cell
from teachers.canvas import Canvas

CELL = Cell.of("17:6:4")


def test_the_plain_law_is_the_denoisers_where_it_is_masked_and_the_token_elsewhere():
    plain, tokens = Plain(CELL), torch.from_numpy(CELL.text()[:24]).view(4, 6)
    masked = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    z = torch.where(masked, plain.mask_id, tokens)
    with torch.no_grad():
        law = plain.law(z)
        torch.testing.assert_close(
            law[masked][:, : plain.mask_id],
            CELL.network().log_probs(Canvas.of(z, plain.mask_id), masked)[:, : plain.mask_id],
        )
    assert torch.equal(law.argmax(-1)[~masked], tokens[~masked])


@pytest.mark.parametrize("method", METHODS)
def test_a_plain_update_moves_the_student_and_its_average(method):
    torch.manual_seed(1)
    update = PlainUpdate(method, CELL)
    weight, average = (
        next(iter(w)).detach().clone() for w in (update.student.network.parameters(), update.student.average)
    )
    for _ in range(3):
        update()
    assert not torch.equal(next(update.student.network.parameters()), weight)
    assert not torch.equal(update.student.average[0], average)
    assert all(bool(w.isfinite().all()) for w in update.student.network.parameters())


def line(length, own, plain, before):
    costs = {"own": own, "plain": plain, "before": before}
    learned = {"own": [[1.0, 2.0]], "plain": [[]], "before": [[1.0, 2.5]]}
    sizes = {"vocabulary": 1024, "length": length, "batch": 8}
    return {"method": "sdtt", **sizes, "milliseconds": costs, "peak_mb": dict.fromkeys(costs, 8.0), "learned": learned}


def test_a_ratio_is_of_whole_times_and_its_ends_are_rounds():
    one = line(64, [1.0, 4.0, 3.0], [2.0, 4.0, 12.0], [1.0] * 3)
    assert ratio(one, "milliseconds", "plain") == "0.44 (0.25–1.00)"
    assert ratio(one, "peak_mb", "plain") == "1.00"
    assert apart(one) == pytest.approx(0.2)


def test_an_exponent_is_the_power_of_a_size():
    lines = [line(n, [n**1.25], [3.0], [5 * n**0.5]) for n in (64, 128, 512)]
    powers = [exponent(lines, "length", "milliseconds", program) for program in ("own", "plain", "before")]
    assert powers == pytest.approx([1.25, 0, 0.5], abs=1e-9)


def test_the_plain_moves_are_those_of_a_uniform_draw_on_average():
    assert [steps for steps, _ in MOVES].count(4) == 2
    assert sum(before + 1 for _, before in MOVES) / len(MOVES) == (2.5 + 4.5) / 2
