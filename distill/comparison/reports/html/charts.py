"""A comparison's plots: a colour for each label, marks that are means over seeds, and ranges over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from distill.comparison.reports.cells import quality_text
from distill.comparison.results import Comparison
from distill.comparison.summary import Summary, summarise
from distill.evaluation.reports.cells import AXES
from distill.evaluation.results import Row
from distill.pages.chart import Axis, Chart, Curve, Level, Mark

TONES = 12  # colours that the style sheet has for labels
SHAPES = ("circle", "diamond", "square", "triangle")
ENTROPY = Axis("bigram entropy of all texts, nats")


class ComparisonCharts:
    """The plots of one comparison."""

    def __init__(self, comparison: Comparison):
        self.comparison, self.key = comparison, comparison.quality
        self.summaries = summarise(comparison.runs, self.key, comparison.sampling.temperature)
        runs = comparison.runs
        temperatures = {row.temperature for run in runs for row in run.rows if row.temperature is not None}
        self._varied = [one for value in sorted(temperatures) for one in summarise(runs, self.key, value)]
        self.quality = Axis(AXES[self.key], log=self.key == "judge_perplexity")
        self.looks = {
            label: (f"s{number % TONES}", SHAPES[number % len(SHAPES)])
            for number, label in enumerate(comparison.settings)
        }

    def frontiers(self) -> list[Chart]:
        """Quality against bigram entropy over temperatures, a plot for each number of steps."""
        return [
            Chart(
                f"{steps} step{'s' if steps > 1 else ''}",
                "Lower is better; further to the left a text says the same more often.",
                ENTROPY,
                self.quality,
                (*(self._student(one) for one in group), *self._teachers(steps)),
                self._real("bigram_entropy", "entropy of real text", upright=True),
            )
            for steps, group in groupby(self.summaries, key=lambda one: one.steps)
        ]

    def costs(self) -> list[Chart]:
        """Quality and diversity against passes and against seconds; a curve for each label."""
        rows = [*self.comparison.own_teacher, *self.summaries]
        passes = Axis("passes of the network for one text", True, tuple(sorted({round(row.nfe, 1) for row in rows})))
        seconds = Axis("seconds for one text", log=True)
        batch = self.comparison.sampling.batch
        return [
            self._chart(
                "Quality against passes", "Further down and to the left is better.", passes, self.quality,
                lambda one: one.nfe, self._qualities, self._real(self.key, "real text"),
            ),
            self._chart(
                "Diversity against passes", "Near the line of real text is best.", passes, ENTROPY,
                lambda one: one.nfe, _entropies, self._real("bigram_entropy", "real text"),
            ),
            self._chart(
                "Quality against time",
                f"Time of sampling alone, in batches of {batch}; further down and to the left is better.",
                seconds, self.quality, lambda one: one.seconds / one.samples, self._qualities,
                self._real(self.key, "real text"),
            ),
            self._chart(
                "Diversity against time", "Near the line of real text is best.", seconds, ENTROPY,
                lambda one: one.seconds / one.samples, _entropies, self._real("bigram_entropy", "real text"),
            ),
        ]  # fmt: skip

    def _chart(
        self,
        name: str,
        told: str,
        x: Axis,
        y: Axis,
        across: Callable[[Summary | Row], float],
        values: Callable[[Summary | Row], Sequence[float]],
        levels: tuple[Level, ...],
    ) -> Chart:
        """A curve for the teacher and one for each label over the numbers of steps."""
        lines: dict[str, list[Summary | Row]] = {"teacher": [*self.comparison.own_teacher]}
        for one in self.summaries:
            lines.setdefault(one.label, []).append(one)
        curves = []
        for name_of_line, line in lines.items():
            tone, shape = self.looks.get(name_of_line, ("teacher", "circle"))
            marks = [self._mark(one, across(one), values(one), name_of_line) for one in sorted(line, key=across)]
            curves.append(Curve(name_of_line, tone, tuple(marks), shape=shape))
        return Chart(name, told, x, y, tuple(curves), levels)

    def _qualities(self, one: Summary | Row) -> Sequence[float]:
        return (one.quality, *one.values) if isinstance(one, Summary) else (getattr(one, self.key),)

    def _student(self, one: Summary) -> Curve:
        """A label in one number of steps, over its temperatures; its name stands at the sampler's own."""
        tone, shape = self.looks[one.label]
        others = [other for other in self._varied if (other.label, other.steps) == (one.label, one.steps)]
        marks = [
            self._mark(other, other.bigram_entropy, self._qualities(other), one.label, one.label * (other == one))
            for other in sorted({*others, one}, key=lambda other: other.bigram_entropy)
        ]
        return Curve(one.label, tone, tuple(marks), band=False, shape=shape)

    def _teachers(self, steps: int) -> Iterable[Curve]:
        """The teacher in as many steps, and in its many, over its temperatures."""
        limit = self.comparison.teacher_steps
        for count in dict.fromkeys((steps, limit)):
            rows = [row for row in self.comparison.teacher if row.steps == count]
            own = [row for row in self.comparison.own_teacher if row.steps == count]
            name, shape = ("teacher", "square") if count == steps else (f"teacher, {limit:,}", "circle")
            marks = [
                self._mark(row, row.bigram_entropy, self._qualities(row), "teacher", name * (row in own))
                for row in sorted(rows, key=lambda row: row.bigram_entropy)
            ]
            whose = "teacher, same steps" if count == steps else f"teacher, {limit:,} steps"
            if marks:
                yield Curve(whose, "teacher", tuple(marks), shape=shape)

    def _mark(self, one: Summary | Row, x: float, values: Sequence[float], name: str, label: str = "") -> Mark:
        """A mean at its place, ``values`` being it and then those of all seeds."""
        seeds = values[1:]
        told = (
            f"{name}, {one.steps:,} steps: {quality_text(self._qualities(one)[0], self.key)} at "
            f"{one.bigram_entropy:.3f} nats of bigram entropy, {one.nfe:.1f} passes"
        )
        ends = (min(seeds), max(seeds)) if len(seeds) > 1 else None
        return Mark(x, values[0], told + (f", {len(seeds)} seeds" if seeds else ""), label, ends)

    def _real(self, key: str, name: str, upright: bool = False) -> tuple[Level, ...]:
        reference = self.comparison.reference
        value = None if reference is None else getattr(reference, key)
        return () if value is None else (Level(name, "real", value, upright),)


def _entropies(one: Summary | Row) -> Sequence[float]:
    return (one.bigram_entropy, *one.entropies) if isinstance(one, Summary) else (one.bigram_entropy,)
