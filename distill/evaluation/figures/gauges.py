"""All figures of texts beside perplexity, and what they are measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distill.evaluation.figures.diversity import distinct, distinct_without_each, longest_runs, repetitions, self_bleu
from distill.evaluation.figures.energy import energy_distance, energy_null
from distill.evaluation.figures.featuriser import Gradients, States, gradient_moment, gradients, states
from distill.evaluation.figures.lengths import length_distance, length_quantiles
from distill.evaluation.figures.mauve import SCALING, cluster_count, mauve
from distill.evaluation.figures.overlap import TrainingText, overlaps
from distill.evaluation.judge import Judge
from distill.evaluation.metrics import jackknife_interval, mean_interval
from distill.evaluation.results import Instruments
from distill.evaluation.texts import Texts
from distill.runtime.world import ALONE, World

REPEATED = 4
"""n of `repetitions`: of bytes as of words, longer ones hardly come twice in a text [own]."""
GRADIENT_TEXTS = 128
"""Texts whose gradients are taken, at most [own]: the Gradient Moment has no bias, however few they are."""
OVERLAP_TEXTS = 256
"""Texts that are looked for in the training text, at most [own]."""


@dataclass(frozen=True)
class Gauges:
    """What texts are measured with, beside the judge.

    Attributes:
        ends: (E,) the tokens that end a text.
        real: real texts to compare with; None for none. apart: whether these are other texts than those of the row
            "real text", so that it can be compared with them too.
        featuriser: whose states and gradients are compared with those of real texts; None for none.
        training: the training text that overlaps are looked for in; None for none.
        seed, batch: as of `EvaluateConfig`. world: its processes share the featuriser's work.
    """

    ends: Sequence[int] = ()
    real: Texts | None = None
    apart: bool = False
    featuriser: Judge | None = None
    training: TrainingText | None = None
    seed: int = 0
    batch: int = 128
    world: World = ALONE

    def figures(self, texts: Texts, distances: bool = True) -> dict[str, Any]:
        """Fields of `Figures`; without ``distances``, those alone that need no network."""
        rows = texts.sequences()
        return {
            **_distinct(rows, 3),
            **_distinct(rows, 4),
            **_mean("repetition_4", repetitions(rows, REPEATED)),
            **_mean("longest_run", longest_runs(rows)),
            "self_bleu": self_bleu(rows) if len(rows) > 1 else None,
            **self._lengths(rows),
            **self._overlaps(rows),
            **(self._distances(texts) if distances else {}),
        }

    def instruments(self, samples: int) -> Instruments:
        """What results say of these, where so many samples are measured."""
        real = 0 if self.real is None else len(self.real.tokens)
        features: dict[str, Any] = {}
        if self.featuriser is not None and real:
            features = {
                "featuriser": self.featuriser.name,
                "featuriser_parameters": self.featuriser.parameters,
                "mauve_clusters": cluster_count(samples, real),
                "mauve_scaling": SCALING,
                "gradient_texts": min(samples, GRADIENT_TEXTS),
            }
        training = None if self.training is None else len(self.training.tokens)
        return Instruments(real_texts=real, training_tokens=training, **features)

    def _lengths(self, rows: Sequence[np.ndarray]) -> dict[str, Any]:
        sizes, ended = self._sizes(rows)
        return {
            **_mean("length_mean", sizes),
            "length_quantiles": length_quantiles(sizes),
            "length_ended": float(ended.mean()),
            "length_distance": None if self.real is None else length_distance(sizes, self._real_sizes),
        }

    def _sizes(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of N texts: tokens up to the first that ends it, or all; and whether one does."""
        ends = [np.flatnonzero(np.isin(row, self.ends)) for row in rows]
        sizes = [at[0] + 1 if len(at) else len(row) for row, at in zip(rows, ends, strict=True)]
        return np.array(sizes), np.array([len(at) > 0 for at in ends])

    @cached_property
    def _real_sizes(self) -> np.ndarray:
        assert self.real is not None
        return self._sizes(self.real.sequences())[0]

    def _overlaps(self, rows: Sequence[np.ndarray]) -> dict[str, Any]:
        if self.training is None:
            return {}
        longest, shares = overlaps(self.training, rows[:OVERLAP_TEXTS])
        return {
            **_mean("overlap_mean", longest),
            "overlap_max": int(longest.max()),
            **_mean("overlap_share", shares),
        }

    def _distances(self, texts: Texts) -> dict[str, Any]:
        if self.real is None or self.featuriser is None or len(texts.tokens) < 2:
            return {}
        own, real = states(self.featuriser, texts, self.batch, self.world), self._real_states
        return {
            "mauve": mauve(own.last, real.last, self.seed),
            "energy_distance": energy_distance(own.mean, real.mean),
            "energy_null": energy_null(own.mean, real.mean, self.seed),
            "gradient_moment": gradient_moment(self._gradients(texts), self._real_gradients),
        }

    def _gradients(self, texts: Texts) -> Gradients:
        assert self.featuriser is not None
        return gradients(self.featuriser, texts.rows(slice(0, GRADIENT_TEXTS)))

    @cached_property
    def _real_states(self) -> States:
        assert self.real is not None
        assert self.featuriser is not None
        return states(self.featuriser, self.real, self.batch, self.world)

    @cached_property
    def _real_gradients(self) -> Gradients:
        assert self.real is not None
        return self._gradients(self.real)


def _distinct(rows: Sequence[np.ndarray], order: int) -> dict[str, Any]:
    value, name = distinct(rows, order), f"distinct_{order}"
    return {name: value, f"{name}_ci": jackknife_interval(value, distinct_without_each(rows, order))}


def _mean(name: str, values: np.ndarray) -> dict[str, Any]:
    """The mean over texts (N,) with its interval; 0 where there are none."""
    if len(values) == 0:
        return {name: 0.0}
    return {name: float(values.mean()), f"{name}_ci": mean_interval(values)}
