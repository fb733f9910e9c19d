"""The law of what a rule writes, by enumeration of every draw, choice and pass; and whether texts have it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.canvas import Canvas
from teachers.denoiser import Denoiser

Law = dict[tuple[int, ...], float]
Z = 4.5  # standard deviations; the seeds are fixed, so a pass is a pass


@dataclass
class Seen:
    """What a rule is shown of one row.

    Attributes:
        number: n of the pass, from 0.
        places: the n open positions. total: how many were open at first.
        log_probs: (n, V) the denoiser's own law there.
        tokens: what was drawn there; None for a rule that does not look.
    """

    number: int
    places: list[int]
    total: int
    log_probs: Tensor
    tokens: tuple[int, ...] | None


Choice = list[tuple[float, list[int]]]
"""What may be committed: probabilities, and positions."""


def filling_law(
    denoiser: Denoiser,
    canvas: Canvas,
    passes: int,
    choose: Callable[[Seen], Choice],
    temperature: float = 1.0,
    looks: bool = False,
) -> Law:
    """What is written on one row, of a denoiser whose mask is its last token, in so many passes: row → probability.

    Args:
        choose: not asked in the last pass, which commits everything.
        looks: whether it looks at what was drawn.
    """
    row, total = canvas.tokens[0].tolist(), int(canvas.open.sum())
    law: Law = defaultdict(float)
    states = {(tuple(row), tuple(canvas.open[0].tolist())): 1.0}
    for number in range(passes):
        after: dict[tuple, float] = defaultdict(float)
        for (tokens, open_), mass in states.items():
            z, places = torch.tensor([tokens]), [i for i, is_open in enumerate(open_) if is_open]
            if not places:
                law[tokens] += mass
                continue
            own = denoiser.log_probs(Canvas(z, torch.tensor([open_]), canvas.real))[0, places].detach().double()
            drawn = (own / temperature).softmax(-1).tolist()
            texts = itertools.product(range(denoiser.spec.mask_id), repeat=len(places)) if looks else [None]
            for text in texts:
                seen = Seen(number, places, total, own, text)
                choices = [(1.0, places)] if number + 1 == passes else choose(seen)
                chance = 1.0
                if text is not None:
                    for p, token in zip(drawn, text, strict=True):
                        chance *= p[token]
                for (probability, commit), (new, p) in (
                    (choice, written)
                    for choice in choices
                    for written in _written(tokens, places, choice[1], drawn, text, denoiser.spec.mask_id)
                ):
                    left = tuple(is_open and i not in commit for i, is_open in enumerate(open_))
                    after[new, left] += mass * chance * probability * p
        states = after
    for (tokens, open_), mass in states.items():
        assert not any(open_)
        law[tokens] += mass
    assert abs(sum(law.values()) - 1) < 1e-9
    return dict(law)


def _written(row, places, commit, drawn, text, tokens):
    """Rows after a commitment, and their probabilities given what has been drawn."""
    index = {place: i for i, place in enumerate(places)}
    for values in itertools.product(range(tokens), repeat=len(commit)) if text is None else [None]:
        new, chance = list(row), 1.0
        for i, place in enumerate(commit):
            new[place] = text[index[place]] if values is None else values[i]
            chance *= 1.0 if values is None else drawn[index[place]][values[i]]
        yield tuple(new), chance


def mixture(laws: list[tuple[float, Law]]) -> Law:
    """Of laws with their weights."""
    mixed: Law = defaultdict(float)
    for weight, law in laws:
        for row, p in law.items():
            mixed[row] += weight * p
    return dict(mixed)


def deviation(rows: Tensor, law: Law) -> float:
    """How many standard deviations χ² of these rows lies above its mean, by Wilson and Hilferty's approximation.

    Cells that expect fewer than five rows are counted as one.
    """
    counts = Counter(map(tuple, rows.tolist()))
    unexpected = [row for row in counts if law.get(row, 0.0) < 1e-12]
    assert not unexpected, f"wrote what the law excludes, such as {unexpected[0]}"
    cells, rest = [], [0.0, 0.0]
    for row, p in law.items():
        expected = p * len(rows)
        if expected >= 5:
            cells.append((counts[row], expected))
        else:
            rest = [rest[0] + counts[row], rest[1] + expected]
    cells += [tuple(rest)] * (rest[1] >= 5)
    freedom = len(cells) - 1
    if freedom == 0:
        return 0.0
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
