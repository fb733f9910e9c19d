"""How often do intervals contain the true value? Of perplexities, and of those at the entropy of real text.

    python -m benchmarks.coverage [--repetitions 200] [--samples 256] [--out docs/coverage.json]

A Markov source is teacher, judge and real text at once, and every repetition is a whole evaluation with noise and real
text of its own. The truth about real text is the entropy of the source, in closed form; that about a sampler is a very
large sample, whose own error is a few percent of an interval. Of 95% intervals, 90% to 99% have to contain it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distill.commands.oracle import oracle_command
from distill.config import EvaluateConfig
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.evaluate import evaluate
from distill.evaluation.frontier import Resampled, Scores, reading
from distill.evaluation.judge import AnyJudge, load_judge
from distill.evaluation.metrics import sample_bigrams, unigram_entropies
from distill.evaluation.results import Evaluation, Interval
from distill.evaluation.sample import draw
from distill.runtime.progress import progress_bar
from students.samplers import Ancestral, Dilated, Sampler
from teachers.denoiser import ExactLaw
from teachers.families import load_denoiser
from teachers.files import publish

LENGTH, TRUTH, BATCH = 32, 50_000, 10_000
CASES: dict[str, tuple[Sampler, int, list[float]]] = {
    "dilated, 4 steps": (Dilated(), 4, [0.9, 1.0, 1.1]),
    "ancestral, 8 steps": (Ancestral(), 8, [0.7, 0.85, 1.0]),
}
"""Rules, steps and temperatures on both sides of real text: one that is nearly exact, and one that is not."""


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
        samples: of an evaluation. truth: of what the true values are read off.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(oracle_command("markov", Path(folder) / "source", length=LENGTH, rows=1, heldout=1))
        source, judge = load_denoiser(path), load_judge(path, load_tokenizer(path))
    assert isinstance(source, ExactLaw)
    for case in cases:
        sampler, steps, temperatures = CASES[case]
        config = EvaluateConfig(
            sampler=sampler, steps=[steps], teacher_steps=steps, temperatures=temperatures, samples=samples,
            batch=samples, bootstrap=bootstrap,
        )  # fmt: skip
        found = [Coverage(case, name, value) for name, value in true_values(source, judge, config, truth).items()]
        with progress_bar() as bar:
            for seed in bar.track(range(repetitions), description=case):
                real = source.sample(samples, torch.Generator().manual_seed(seed))
                intervals = intervals_of(evaluate(source, None, judge, config, LENGTH, real, seed=seed + 1))
                for one in found:
                    one.add(intervals[one.figure])
        yield from found


def true_values(source: ExactLaw, judge: AnyJudge, config: EvaluateConfig, samples: int) -> dict[str, float]:
    """Perplexities by the names of `intervals_of`."""
    ones, [steps] = np.ones((1, samples)), config.steps
    large = config.model_copy(update={"batch": min(BATCH, samples)})
    drawn = draw(source, large, steps, samples, LENGTH, 0, temperatures=config.temperatures)
    curve = [Resampled.of(scores(one.texts.tokens, judge), ones) for one in drawn]
    real = Resampled.of(scores(source.sample(samples, torch.Generator().manual_seed(2**32)), judge), ones)
    own = curve[(config.temperatures or []).index(config.sampler.temperature)]
    values = np.stack([one.log_perplexity for one in curve])
    matched = {
        f"at the {axis} entropy of real text": reading(
            np.stack([one.entropy[axis] for one in curve]), values, real.entropy[axis]
        ).item()
        for axis in real.entropy
    }
    logs = {"real text": source.entropy(LENGTH) / LENGTH, "temperature 1": own.log_perplexity.item(), **matched}
    return {name: math.exp(value) for name, value in logs.items()}


def scores(tokens: Tensor, judge: AnyJudge) -> Scores:
    """What frontiers are made of."""
    rows = tokens.numpy()
    return Scores(*judge.score(tokens), unigram_entropies(rows), sample_bigrams(rows))


def intervals_of(evaluation: Evaluation) -> dict[str, Interval | None]:
    """Those of the perplexities, by what they are of."""
    assert evaluation.reference is not None
    [own] = [row for row in evaluation.rows if row.temperature == 1]
    matched = {f"at the {one.axis} entropy of real text": one.judge_perplexity_ci for one in evaluation.frontier or ()}
    return {
        "real text": evaluation.reference.judge_perplexity_ci,
        "temperature 1": own.judge_perplexity_ci,
        **matched,
    }


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
