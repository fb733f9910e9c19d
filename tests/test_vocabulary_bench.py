"""The plain loop that updates are compared with: it computes the same, at all positions."""

import pytest
import torch

from benchmarks.vocabulary import METHODS, Cell, Plain, PlainUpdate, ratio
from teachers.canvas import Canvas

CELL = Cell.of("17:6:4")


def test_the_plain_law_is_the_denoisers_where_it_is_masked_and_the_token_elsewhere():
    plain, tokens = Plain(CELL), torch.from_numpy(CELL.text(4)).view(4, 6)
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


def test_a_ratio_is_that_of_programs_in_the_same_round():
    line = {"milliseconds": {"own": [1.0, 4.0, 3.0], "plain": [2.0, 4.0, 12.0]}}
    assert ratio(line, "own", "plain") == "0.50 (0.25–1.00)"
