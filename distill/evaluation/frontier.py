"""Perplexity where text is as varied as real text: a curve over temperatures, read at one entropy.

A lower temperature lowers perplexity and entropy together, so that neither says anything alone (2603.20155). Rows at
several temperatures make a curve of log-perplexity over entropy. It is read where the entropy is that of real text,
linearly between the two rows beside it. Arrays are (1 + R,): a figure of all samples, then of R resamples of them, so
that an interval is of the whole reading: rows, real text and interpolation. All nats.

Resamples are the same samples at every temperature, of every model and of real text. Sample i of two rows has the same
noise, and sample i and real text i the same prompt, so their errors go together, and an interval that drew them apart
would be too wide or too narrow; where they are independent nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from distill.evaluation.metrics import Bigrams, bigram_entropies, nats_a_token, quantiles
from distill.evaluation.results import Axis, Frontier, Interval, Row


@dataclass(frozen=True)
class Scores:
    """What a judge says of N texts, one by one, and what else a frontier needs of them.

    Attributes:
        nats, tokens: (N,) summed negative log-likelihood, over how many of the judge's tokens.
        unigram: (N,) the entropy of each text's own token counts, of the judge's tokens.
        bigrams: of the model's tokens.
    """

    nats: np.ndarray
    tokens: np.ndarray
    unigram: np.ndarray
    bigrams: Bigrams


@dataclass(frozen=True)
class Resampled:
    """Figures of a set of texts, and of its resamples: (1 + R,) each."""

    log_perplexity: np.ndarray
    entropy: dict[Axis, np.ndarray]

    @staticmethod
    def of(scores: Scores, weights: np.ndarray) -> Resampled:
        """The figures under (1 + R, N) weights, see `resamples`."""
        entropy: dict[Axis, np.ndarray] = {
            "unigram": weights @ scores.unigram / weights.sum(1),
            "bigram": bigram_entropies(scores.bigrams, weights),
        }
        return Resampled(nats_a_token(scores.nats, scores.tokens, weights), entropy)


def reading(entropy: np.ndarray, value: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A curve through points, linear between neighbours in the order of their entropy, where the entropy is ``at``.

    A resample's curve that ends before its ``at`` is continued as it ends, once as far as its last segment.

    Args:
        entropy, value: (T, S) T ≥ 2 points of S curves. at: (S,).

    Returns:
        (S,).
    """
    # 1. points from the left to the right
    order = entropy.argsort(0, kind="stable")
    entropy, value = (np.take_along_axis(part, order, 0) for part in (entropy, value))
    # 2. the segment that holds it, or the one at the end
    right = np.clip((entropy < at).sum(0), 1, len(entropy) - 1)[None]
    (x0, x1), (y0, y1) = (
        [np.take_along_axis(part, side, 0)[0] for side in (right - 1, right)] for part in (entropy, value)
    )
    # 3. a part of the way along it; halfway where it has no width
    width = x1 - x0
    share = np.divide(at - x0, width, out=np.full_like(width, 0.5), where=width > 0)
    return y0 + share.clip(-1, 2) * (y1 - y0)


def reaches(entropy: Sequence[float], at: float) -> bool:
    """Whether a curve has points on both sides of an entropy."""
    return min(entropy) <= at <= max(entropy) and min(entropy) < max(entropy)


def frontiers(
    measured: Sequence[tuple[Row, Resampled]], real: Mapping[int, Resampled], many: int
) -> tuple[Frontier, ...]:
    """Each model's perplexity at the entropy of real text, for each sampler, number of steps and axis.

    Args:
        measured: rows and their resamples.
        real: that of real text, by the number of samples of a row: pooled entropies grow with it, so a row is read
            where it is as varied as as many real texts. The one of the most samples is told.
        many: the teacher's many steps, against which others are held.
    """
    curves: dict[tuple[str, str, int], list[tuple[Row, Resampled]]] = {}
    for row, figures in measured:
        curves.setdefault((row.model, row.sampler, row.steps), []).append((row, figures))
    out = []
    for axis in get_args(Axis):
        read = {
            key: matched([part for _, part in curve], real[curve[0][0].samples], axis) for key, curve in curves.items()
        }
        reference = [key for key in read if (key[0], key[2]) == ("teacher", many)]
        for key, curve in curves.items():
            _, sampler, steps = key
            same, far = ("teacher", sampler, steps), next(iter(reference), key)
            teacher, limit = (None if other == key else read.get(other) for other in (same, far))
            out.append(_frontier(curve, axis, real[max(real)], read[key], teacher, limit))
    return tuple(out)


def matched(curve: Sequence[Resampled], real: Resampled, axis: Axis) -> np.ndarray | None:
    """(1 + R,) log-perplexity at the entropy of real text; None where the curve does not reach it."""
    at, entropy = real.entropy[axis], np.stack([part.entropy[axis] for part in curve])
    if not reaches(entropy[:, 0].tolist(), float(at[0])):
        return None
    return reading(entropy, np.stack([part.log_perplexity for part in curve]), at)


def figure(logs: np.ndarray) -> tuple[float, Interval]:
    """exp of the first of (1 + R,) logs, with the 95% interval that the others give it."""
    return float(np.exp(logs[0])), quantiles(np.exp(logs[1:]))


def _frontier(
    curve: Sequence[tuple[Row, Resampled]],
    axis: Axis,
    real: Resampled,
    value: np.ndarray | None,
    teacher: np.ndarray | None,
    many: np.ndarray | None,
) -> Frontier:
    """A reading as results hold it, and against two others."""
    row = curve[0][0]
    perplexity, interval = _figure(value)
    to_teacher, to_teacher_ci = _figure(None if value is None or teacher is None else value - teacher)
    to_many, to_many_ci = _figure(None if value is None or many is None else value - many)
    return Frontier(
        model=row.model,
        sampler=row.sampler,
        steps=row.steps,
        nfe=sum(row.nfe for row, _ in curve) / len(curve),
        axis=axis,
        entropy=float(real.entropy[axis][0]),
        reached=value is not None,
        judge_perplexity=perplexity,
        judge_perplexity_ci=interval,
        to_teacher=to_teacher,
        to_teacher_ci=to_teacher_ci,
        to_many=to_many,
        to_many_ci=to_many_ci,
    )


def _figure(logs: np.ndarray | None) -> tuple[float | None, Interval | None]:
    return (None, None) if logs is None else figure(logs)
