"""Sources with dependence at a distance, against enumeration of everything they could write."""

import json
import math
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.errors import UserError
from teachers.families import load_denoiser, resolve
from teachers.oracle import SOURCES, Brackets, Copies, Templates
from teachers.oracle.denoiser import SourceDenoiser
from teachers.oracle.making import random_oracle
from teachers.oracle.templates import partitions
from tests.laws import deviation
from tests.tabular import all_patterns

SMALL = {
    "copies": {"tokens": 3, "length": 4, "noise": 0.2},
    "brackets": {"kinds": 2, "depth": 2, "length": 4, "noise": 0.2, "stray": 0.1},
    "templates": {"tokens": 3, "length": 4, "noise": 0.3},
}
KINDS = pytest.mark.parametrize("kind", list(SMALL))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def copies_by_hand(source, row):
    law = 1.0
    for a, b in zip(row[:2], row[2:], strict=True):
        law *= (0.8 * (a == b) + 0.2 / 3) / 3
    return law


def brackets_by_hand(source, row):
    """Two skeletons, (()) and ()(), each with four pairs of kinds, and fourteen that are none."""
    skeleton = tuple(int(token >= 2) for token in row)
    pairs = {(0, 0, 1, 1): ((0, 3), (1, 2)), (0, 1, 0, 1): ((0, 1), (2, 3))}.get(skeleton)
    if pairs is None:
        return 0.1 / (14 * 2**4)
    law = 0.9 / 2
    for i, j in pairs:
        law *= (0.8 * (row[i] == row[j] - 2) + 0.2 / 2) / 2
    return law


def templates_by_hand(source, row):
    law = 0.0
    for template in range(3):
        fits = [int(source.texts[i, template]) == token for i, token in enumerate(row)]
        law += math.prod(0.7 * fit + 0.3 / 3 for fit in fits) / 3
    return law


BY_HAND = {"copies": copies_by_hand, "brackets": brackets_by_hand, "templates": templates_by_hand}


@KINDS
@pytest.mark.parametrize("mask", ["last", 1])
def test_likelihood_entropy_and_posteriors_of_every_mask_pattern_are_those_of_enumeration(kind, mask):
    denoiser = random_oracle(kind, 0, SMALL[kind])
    tokens, mask_id = denoiser.tokens, denoiser.tokens if mask == "last" else mask
    denoiser = SourceDenoiser(denoiser.source, 4, mask_id)
    rows = denoiser.all_rows(4)
    ids = [v for v in range(tokens + 1) if v != mask_id]
    p = torch.tensor([BY_HAND[kind](denoiser.source, [ids.index(v) for v in row]) for row in rows.tolist()])
    p = p.double()
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(denoiser.log_likelihood(rows).exp(), p, rtol=1e-6, atol=0)
    p = denoiser.log_likelihood(rows).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert denoiser.entropy() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-12)
    assert denoiser.kl(p, 4) == pytest.approx(0, abs=1e-12)
    hits = torch.nn.functional.one_hot(rows, tokens + 1).double()
    for pattern in all_patterns(4):
        z = torch.where(pattern, mask_id, rows).unique(dim=0)
        fits = ((z[:, None] == rows[None]) | (z[:, None] == mask_id)).all(-1).double() * p  # (canvas, row)
        expected = torch.einsum("cr,rlv->clv", fits, hits) / fits.sum(1)[:, None, None]
        torch.testing.assert_close(denoiser.posterior(z).exp(), expected, rtol=1e-9, atol=1e-15)


@KINDS
def test_draws_have_the_law(kind):
    denoiser = random_oracle(kind, 0, SMALL[kind])
    rows = denoiser.all_rows(4)
    law = dict(zip(map(tuple, rows.tolist()), denoiser.log_likelihood(rows).exp().tolist(), strict=True))
    drawn = denoiser.sample(50_000, generator())
    assert abs(deviation(drawn, law)) < 4.5
    mean, error = denoiser.excess_nats(drawn)
    assert abs(mean) < 4 * error


@KINDS
def test_padding_tells_nothing_and_no_cast_moves_it(kind):
    denoiser = random_oracle(kind, 0, SMALL[kind])
    mask = denoiser.spec.mask_id
    z = torch.tensor([[0, mask, 1, 2]])
    padded = denoiser.posterior(z, torch.tensor([[True, True, True, False]]))
    expected = denoiser.posterior(torch.tensor([[0, mask, 1, mask]]))
    torch.testing.assert_close(padded, expected)
    assert torch.equal(denoiser.bfloat16().posterior(z), random_oracle(kind, 0, SMALL[kind]).posterior(z))
    with pytest.raises(UserError, match=f"rows have 3 tokens, and this source of {kind} is a law of rows of 4"):
        denoiser.posterior(z[:, :3])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("copies", {"tokens": 8, "length": 16, "noise": 0.01}),
        ("brackets", {"kinds": 2, "depth": 4, "length": 16, "noise": 0.01, "stray": 1e-9}),
        ("templates", {"tokens": 8, "length": 16, "noise": 0.1}),
    ],
)
def test_rows_of_sixteen_tokens_are_exact_too(kind, settings):
    """Draws cost the entropy, their tokens follow one another as the posteriors say, and tables are laws."""
    denoiser = random_oracle(kind, 0, settings)
    rows = denoiser.sample(4000, generator())
    mean, error = denoiser.excess_nats(rows)
    assert abs(mean) < 4 * error < 0.05
    order, z, nats = torch.randperm(16, generator=generator()), torch.full((4000, 16), denoiser.spec.mask_id), 0.0
    for position in order.tolist():  # the chain rule, in any order
        nats = nats + denoiser.posterior(z)[torch.arange(4000), position, rows[:, position]]
        z[:, position] = rows[:, position]
    torch.testing.assert_close(nats, denoiser.log_likelihood(rows), rtol=1e-9, atol=1e-9)


def test_brackets_are_balanced_and_as_deep_as_they_may_be():
    denoiser = random_oracle("brackets", 0, {"kinds": 2, "depth": 3, "length": 12, "noise": 0.01, "stray": 1e-9})
    assert denoiser.source.skeletons == 89  # Dyck paths of 12 steps up to a height of 3: a Fibonacci number
    depths = (1 - 2 * (denoiser.sample(2000, generator()) >= 2).long()).cumsum(1)
    assert int(depths.min()) == 0
    assert int(depths.max()) == 3
    assert not depths[:, -1].any()
    assert Brackets(1, 12, 12, 0.1, 0.1).skeletons == 132, "Catalan"
    assert denoiser.source.words() == ["(", "[", ")", "]"]


def test_templates_are_texts_that_agree_nowhere():
    source = random_oracle("templates", 3, {"tokens": 4, "length": 6, "noise": 1e-6}).source
    rows = Counter(map(tuple, source.draw(400, 6, generator()).tolist()))
    assert set(rows) == set(map(tuple, source.texts.T.tolist()))
    assert sorted(partitions(4, 3)) == [(2, 1, 1), (2, 2, 0), (3, 1, 0), (4, 0, 0)]


@KINDS
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    denoiser = SourceDenoiser(random_oracle(kind, 0, SMALL[kind]).source, 4, 1, 0, 2)
    denoiser.save(tmp_path)
    assert resolve(str(tmp_path)).family.name == "oracle"
    back = load_denoiser(str(tmp_path))
    assert back.spec == denoiser.spec
    assert back.size == denoiser.size
    assert torch.equal(back.log_likelihood(rows := denoiser.all_rows(4)), denoiser.log_likelihood(rows))


@KINDS
@pytest.mark.parametrize("damage", ["kind", "numbers", "missing", "tables"])
def test_a_damaged_folder_is_refused(kind, damage, tmp_path):
    random_oracle(kind, 0, SMALL[kind]).save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if damage == "kind":
        config["kind"] = "copie"
    elif damage == "numbers":
        config["numbers"]["noise"] = 2.0
    elif damage == "missing":
        del config["numbers"]["noise"]
    else:
        save_file({k: v + 1 for k, v in load_file(tmp_path / "model.safetensors").items()} | {"other": torch.ones(1)},
                  tmp_path / "model.safetensors")  # fmt: skip
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cannot load exact source|noise is 2\.0; it must be more than 0") as refusal:
        load_denoiser(str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Copies(1, 4, 0.1), "tokens is 1; it must be from 2"),
        (lambda: Copies(3, 5, 0.1), "length is 5; copied halves make an even number"),
        (lambda: Copies(3, 4, 0.0), "noise is 0.0; it must be more than 0 and less than 1"),
        (lambda: Copies(3, 4, math.nan), "noise is nan"),
        (lambda: Brackets(5, 2, 4, 0.1, 0.1), "kinds is 5; it must be from 1 to 4"),
        (lambda: Brackets(1, 0, 4, 0.1, 0.1), "depth is 0"),
        (lambda: Brackets(4, 8, 16, 0.1, 0.1), "more than 1024 stacks"),
        (lambda: Brackets(2, 2, 3, 0.1, 0.1), "length is 3; brackets make an even number"),
        (lambda: Brackets(2, 2, 4, 0.1, 1.0), "stray is 1.0"),
        (lambda: Templates(torch.zeros(4, 3, dtype=torch.int64), 0.1), r"texts of templates have shape \(4, 3\)"),
        (lambda: random_oracle("templates", 0, {"tokens": 1, "length": 4, "noise": 0.1}), "at least two positions"),
        (lambda: SourceDenoiser(Copies(3, 4, 0.1), 6), "rows have 6 tokens, and this source of copies"),
    ],
)
def test_what_is_no_source_is_refused(make, words):
    with pytest.raises(UserError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_every_kind_has_a_class():
    assert set(SOURCES) == {"markov", *SMALL}
