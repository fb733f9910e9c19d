"""How often do intervals contain the true value? Of perplexities, and of those at the entropy of real text.

    python -m benchmarks.coverage [--repetitions 200] [--samples 256] [--out docs/coverage.json]

A Markov source is teacher, judge and real text at once, and every repetition has samples and real text of its own. The
truth about real text is the entropy of the source, in closed form; that about a sampler is a large sample, whose own
error is a few percent of an interval. Of 95% intervals, 90% to 99% have to contain it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distill.commands.oracle import oracle_command
from distill.config import EvaluateConfig
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.frontier import Resampled, Scores, figure, matched
from distill.evaluation.judge import AnyJudge, load_judge
from distill.evaluation.metrics import resamples, sample_bigrams
from distill.evaluation.results import Axis, Interval
from distill.evaluation.sample import draw
from students.samplers import Ancestral, Dilated, Sampler
from teachers.denoiser import ExactLaw
from teachers.families import load_denoiser
from teachers.files import publish

LENGTH, TRUTH, BATCH = 32, 50_000, 10_000
AT = "at the {} entropy of real text"
CASES: dict[str, tuple[Sampler, int, list[float]]] = {
    "dilated, 4 steps": (Dilated(), 4, [0.9, 1.0, 1.1]),
    "ancestral, 8 steps": (Ancestral(), 8, [0.7, 0.85, 1.0]),
    "dilated, 4 steps, farther temperatures": (Dilated(), 4, [0.6, 1.0, 1.5]),
    "ancestral, 8 steps, farther temperatures": (Ancestral(), 8, [0.4, 0.7, 1.0, 1.5]),
}
"""Rules, steps and temperatures on both sides of real text: one that is nearly exact, and one that is not; near, where
unigram entropy hardly moves and is often not reached, and farther."""


@dataclass
class Coverage:
    """Of one figure.

    Attributes:
        repetitions: that had an interval; a curve that does not reach real text has none.
        covered: whose interval has the truth.
        below, above: whose interval ends before the truth, or begins behind it.
        width: mean width of the intervals, over the truth.
    """

    case: str
    figure: str
    truth: float
    repetitions: int = 0
    covered: int = 0
    below: int = 0
    above: int = 0
    width: float = 0.0

    def add(self, interval: Interval | None) -> None:
        """Count an interval."""
        if interval is None:
            return
        low, high = interval
        self.width += ((high - low) / self.truth - self.width) / (self.repetitions + 1)
        self.repetitions += 1
        self.covered += low <= self.truth <= high
        self.below += high < self.truth
        self.above += low > self.truth


def coverage(
    repetitions: int, samples: int, truth: int = TRUTH, bootstrap: int = 1000, cases: Iterable[str] = CASES
) -> Iterator[Coverage]:
    """Every figure of some cases.

    Args:
        samples: of a repetition. truth: of what the true values are read off.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(oracle_command("markov", Path(folder) / "source", length=LENGTH, rows=1, heldout=1))
        source, judge = load_denoiser(path), load_judge(path, load_tokenizer(path))
    assert isinstance(source, ExactLaw)
    for case in cases:
        drawn = Drawn.of(source, case, repetitions * samples, 1)
        truths = true_values(source, judge, Drawn.of(source, case, truth, 2))
        found = [Coverage(case, name, value) for name, value in truths.items()]
        for seed in range(repetitions):
            part = slice(seed * samples, (seed + 1) * samples)
            intervals = intervals_of(drawn.rows(part), judge, resamples(samples, bootstrap, seed))
            for one in found:
                one.add(intervals[one.figure])
        yield from found


@dataclass
class Drawn:
    """Rows at each temperature, one of which is 1, and real ones: (N, L) each."""

    temperatures: list[float]
    texts: list[Tensor]
    real: Tensor

    @staticmethod
    def of(source: ExactLaw, case: str, count: int, seed: int) -> Drawn:
        """So many rows, each independent of the others at its own temperature."""
        sampler, steps, temperatures = CASES[case]
        config = EvaluateConfig(sampler=sampler, batch=min(BATCH, count))
        drawn = draw(source, config, steps, count, LENGTH, seed, temperatures=temperatures)
        real = source.sample(count, torch.Generator().manual_seed(seed), length=LENGTH)
        return Drawn(temperatures, [one.texts.tokens for one in drawn], real)

    def rows(self, part: slice) -> Drawn:
        """Some of them."""
        return Drawn(self.temperatures, [tokens[part] for tokens in self.texts], self.real[part])


def curve_of(drawn: Drawn, judge: AnyJudge, weights: np.ndarray) -> tuple[dict[str, Resampled], list[Resampled]]:
    """Real text and temperature 1 by their names, and all temperatures."""
    curve = [Resampled.of(scores(tokens, judge), weights) for tokens in drawn.texts]
    real = Resampled.of(scores(drawn.real, judge), weights)
    return {"real text": real, "temperature 1": curve[drawn.temperatures.index(1.0)]}, curve


def true_values(source: ExactLaw, judge: AnyJudge, drawn: Drawn) -> dict[str, float]:
    """Perplexities by the names of `intervals_of`."""
    plain, curve = curve_of(drawn, judge, np.ones((1, len(drawn.real))))
    logs = {"real text": source.entropy(LENGTH) / LENGTH, "temperature 1": plain["temperature 1"].log_perplexity.item()}
    for axis in get_args(Axis):
        value = matched(curve, plain["real text"], axis)
        assert value is not None, "temperatures are on both sides of real text"
        logs[AT.format(axis)] = value.item()
    return {name: math.exp(value) for name, value in logs.items()}


def intervals_of(drawn: Drawn, judge: AnyJudge, weights: np.ndarray) -> dict[str, Interval | None]:
    """Those of the perplexities, by what they are of, as `evaluate` has them."""
    plain, curve = curve_of(drawn, judge, weights)
    out: dict[str, Interval | None] = {name: figure(one.log_perplexity)[1] for name, one in plain.items()}
    for axis in get_args(Axis):
        value = matched(curve, plain["real text"], axis)
        out[AT.format(axis)] = None if value is None else figure(value)[1]
    return out


def scores(tokens: Tensor, judge: AnyJudge) -> Scores:
    """What frontiers are made of."""
    return Scores(*judge.score(tokens), sample_bigrams(tokens.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = Table("case", "perplexity of", "truth", "intervals", "have it", "end before", "begin behind", "width")
    found = list(coverage(args.repetitions, args.samples))
    for one in found:
        cells = [f"{one.truth:.4f}", str(one.repetitions), f"{one.covered / one.repetitions:.1%}"]
        table.add_row(one.case, one.figure, *cells, str(one.below), str(one.above), f"{one.width:.2%}")
    Console().print(table)
    if args.out:
        publish(args.out, json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
