"""Lengths that are found out before a text is written: the profile of an exact law, DAEDAL step by step, insertions."""

from __future__ import annotations

import pytest
import torch

from distill.completions import complete
from students.fill import fill, fill_to_length
from students.samplers import SAMPLERS, Ancestral, Daedal, TopK
from students.samplers.length import Grown, Predicted, end_confidence, profile, restored, row_ends, shortened, trimmed
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.randomness import RowStreams
from tests.networks import stock

LETTERS, END, MASK = 4, 4, 5
FIRST = torch.tensor([4, 9, 20, 31])
"""For each letter as a prompt, how many letters its text has in the mean."""


class Documents(Denoiser):
    """Texts whose prompt, one letter, tells their length n: n or n + 2 letters, with probability ½ each, then ends.

    What is written tells which: a letter at place n, or an end. Every letter is as probable as any other.
    """

    def __init__(self, length: int = 64, certain: float = 1.0):
        super().__init__()
        self.spec = DenoiserSpec(MASK, MASK + 1, length, END)
        self.certain = certain
        self.passes: list[tuple[int, int]] = []
        self.nothing = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def features(self, canvas, select=None):
        self.passes.append((len(canvas), canvas.length))
        first = FIRST[canvas.tokens[:, 0].clamp(max=LETTERS - 1)][:, None]
        place = torch.arange(canvas.length)[None] - 1
        long, short = (
            ((canvas.tokens < END) & (place >= first)).any(1),
            ((canvas.tokens == END) & (place < first + 2)).any(1),
        )
        half = torch.where(long, 0.0, torch.where(short, 1.0, 0.5))[:, None]
        ends = torch.where(place >= first + 2, self.certain, torch.where(place >= first, half, 0.0))
        letters = ((1 - ends) / LETTERS)[..., None].expand(-1, -1, LETTERS)
        law = torch.cat([letters, ends[..., None], torch.zeros_like(ends)[..., None]], -1).log()
        return law if select is None else law[select]

    def save(self, folder, compression=None, released=False):
        raise TypeError("documents are not saved")


def rows(length: int = 48, letters=(0, 1, 2, 3)) -> Canvas:
    return Canvas.prompted([[letter] for letter in letters], length, MASK)


def lengths(canvas: Canvas) -> list[int]:
    """Tokens that are to be written in each row."""
    return canvas.open.sum(1).tolist()


def test_a_profile_is_the_law_of_the_length():
    said = profile(Documents(), rows())
    for row, first in enumerate(FIRST.tolist()):
        assert said.ends[row, 1 : 1 + first].eq(0).all()
        assert said.ends[row, 1 + first : 3 + first].eq(0.5).all()
        assert said.ends[row, 3 + first :].eq(1).all()


@pytest.mark.parametrize(("enough", "more"), [(0.4, 1), (0.9, 3)])
def test_one_pass_says_how_much_is_enough(enough, more):
    """With probability 0.4 or more n letters and an end; with 0.9 there must be room for two more."""
    sized = Predicted(enough=enough).sized(Documents(), rows())
    assert lengths(sized.canvas) == (FIRST + more).tolist()
    assert sized.nfe.tolist() == [1, 1, 1, 1]


def test_only_texts_that_do_not_end_in_a_short_canvas_are_asked_in_the_longest():
    denoiser = Documents()
    sized = Predicted(start=16).sized(denoiser, rows())
    assert lengths(sized.canvas) == (FIRST + 3).tolist()
    assert sized.nfe.tolist() == [1, 1, 2, 2]
    assert denoiser.passes == [(4, 17), (2, 48)]


def test_a_text_without_an_end_takes_the_whole_canvas_and_two_passes_at_most():
    sized = Predicted(start=8).sized(Documents(certain=0.5), rows(24))
    assert lengths(sized.canvas) == [23] * 4
    assert sized.nfe.tolist() == [2] * 4
    assert Predicted(start=30).sized(Documents(certain=0.5), rows(24)).nfe.tolist() == [1] * 4


def test_daedal_grows_until_a_window_of_ends_is_sure_enough():
    """A window of 4: Σ p(end) / 4 ≥ 0.5 asks for two sure ends, or for one and two likely ones, of which ½ is none."""
    settings = {"start": 6, "step": 2, "window": 4, "closing": 0}
    sized = Grown(**settings).sized(Documents(), rows())
    # n and n + 2 letters tie, and the tie goes to the letters only where the end has less than each of them
    expected = []
    for first in FIRST.tolist():
        length, passes = 6, 0
        while True:
            passes += 1
            half, sure = (min(max(length - a, 0), b) for a, b in ((first, 2), (first + 2, 4)))
            likely = min(sure, 4) + min(half, 4 - min(sure, 4)) * 0.5
            if likely / 4 >= 0.5:
                break
            length += 2
        expected.append((length, passes))
    assert list(zip(lengths(sized.canvas), sized.nfe.tolist(), strict=True)) == expected


def test_daedal_stops_at_the_longest_canvas_and_closes_it():
    sized = Grown(start=8, step=4, window=8).sized(Documents(certain=0.2), rows(20))
    assert lengths(sized.canvas) == [19] * 4
    assert sized.nfe.tolist() == [3] * 4  # of 8, 12 and 16 tokens; the longest is asked no more
    closed = Grown(start=6, step=2, window=2, closing=3).sized(Documents(), rows(40, [0])).canvas
    end = 1 + lengths(closed)[0]
    assert closed.tokens[0, end : end + 3].tolist() == [END] * 3
    assert row_ends(closed).tolist() == [end + 3]


def test_the_published_window_sums_the_last_likely_ends_over_its_size():
    said = profile(Documents(), rows(20, [1]))
    assert float(end_confidence(said, 4)) == 1.0
    assert float(end_confidence(said, 16)) == pytest.approx((8 * 1 + 2 * 0.5) / 16)


@pytest.mark.parametrize("length", [Predicted(), Predicted(start=8), Grown(start=8, window=2)])
@pytest.mark.parametrize("sampler", [Ancestral(), TopK(draw="greedy", block_length=4)])
def test_what_is_cut_off_is_end_tokens_and_its_passes_have_a_column_of_their_own(length, sampler):
    randomness = RowStreams(0, (), range(4))
    filled = fill_to_length(Documents(), rows(), sampler.model_copy(update={"length": length}), 24, randomness)
    assert filled.tokens.shape == (4, 48)
    assert not filled.canvas.open.any()
    for row, first in enumerate(FIRST.tolist()):
        written = filled.tokens[row, 1:].tolist()
        assert written.index(END) >= first
        assert set(written[first + 2 :]) == {END}
    assert filled.length_nfe.ge(1).all()
    assert filled.nfe.le(24).all()
    plain = fill(Documents(), rows(), sampler, 24, RowStreams(0, (), range(4)))
    assert plain.length_nfe is None


def test_texts_have_the_law_that_they_have_in_the_whole_canvas():
    """With exact draws: n letters as often as n + 2, where there is room for both."""
    canvas = rows(24, [1] * 400)
    sampler = Ancestral(length=Predicted())
    tokens = fill_to_length(Documents(), canvas, sampler, 24, torch.Generator().manual_seed(0)).tokens
    long = int((tokens[:, 1 + 9] != END).sum())
    assert 150 < long < 250
    assert bool((tokens[:, 1 + 11 :] == END).all())


def test_daedal_inserts_masks_where_nothing_is_certain():
    """Letters have ¼ each, which is doubtful enough here; so a text that was given no room makes it."""
    sampler = Daedal(length=None, doubt=0.3, window=2, insertion=4)
    tight = shortened(rows(40, [1]), torch.tensor([1 + 4]))
    filled = fill(Documents(), tight, sampler, 40, RowStreams(0, (), [0]))
    written = filled.tokens[0, 1 : int(row_ends(filled.canvas))].tolist()
    assert END in written
    assert written.index(END) in (9, 11)
    assert not filled.canvas.open.any()
    still = fill(Documents(), tight, sampler.model_copy(update={"doubt": 0.0}), 40, RowStreams(0, (), [0]))
    assert row_ends(still.canvas).tolist() == [1 + 4]
    assert int(still.nfe) == 4  # a letter is not certain, so one a pass


def test_daedal_as_a_whole_writes_texts_that_end():
    sampler = Daedal(length=Grown(start=4, step=2, window=2, closing=2), doubt=0.3, window=2, insertion=4)
    filled = fill_to_length(Documents(), rows(), sampler, 48, RowStreams(0, (), range(4)))
    for row, first in enumerate(FIRST.tolist()):
        assert filled.tokens[row, 1:].tolist().index(END) in (first, first + 2)
    assert filled.length_nfe.ge(1).all()


def test_few_steps_are_a_cap():
    filled = fill_to_length(Documents(), rows(), Daedal(), 3, RowStreams(0, (), range(4)))
    assert filled.nfe.le(3).all()
    assert not filled.canvas.open.any()


def test_rows_are_cut_and_put_back():
    canvas = rows(12)
    cut = shortened(canvas, torch.tensor([3, 5, 4, 4]))
    assert trimmed(cut).length == 5
    whole = restored(trimmed(cut), canvas, END)
    assert whole.tokens[0].tolist() == [0, MASK, MASK] + [END] * 9
    assert whole.open.sum(1).tolist() == [2, 4, 3, 3]


def test_completions_say_the_passes_that_their_length_took():
    model = stock(MASK + 1, 24, MASK, eos_id=END)

    class Letters:
        def decode(self, tokens, **_):
            return "".join("abcde"[token] for token in tokens)

    written = complete(model, Letters(), [[0], [1, 2]], 20, Ancestral(length=Predicted(enough=0.99)), 4, 0)
    assert [completion.length_nfe for completion in written] == [1, 1]


@pytest.mark.parametrize("sampler", [Ancestral(length=Predicted()), Daedal()])
def test_what_can_not_end_is_refused(sampler):
    with pytest.raises(UserError, match="the model has no end token"):
        fill_to_length(stock(6, 12, MASK), rows(12), sampler, 4, RowStreams(0, (), range(4)))
    between = Canvas.prompted([[0]], 12, MASK, suffixes=[[1]])
    with pytest.raises(UserError, match="something follows it"):
        fill_to_length(Documents(), between, sampler, 4, RowStreams(0, (), [0]))


def test_the_rule_has_a_name_and_its_settings_read_back():
    assert SAMPLERS["daedal"] is Daedal
    rule = Ancestral(length=Grown(start=16))
    assert Ancestral(**{k: v for k, v in rule.model_dump().items() if k != "name"}) == rule
    assert rule.label == "ancestral, grown length"
