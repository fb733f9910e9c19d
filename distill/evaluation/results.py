"""What an evaluation measured: figures of teacher, student and real text, as ``evaluation.json`` holds them.

A class has the keys of the file as its fields, in the file's order. Needs neither torch nor matplotlib to be imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distill.runtime.cost import Cost
from distill.runtime.result_files import json_text, load_result
from teachers.files import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "evaluation.json"
MEASURES = ("divergence_nats", "excess_nats", "judge_perplexity")
"""Of quality, the most telling first: without sharpness counted as a gain, without an error of a judge."""

Interval = tuple[float, float]
Axis = Literal["unigram", "bigram"]
"""The entropies that a frontier is drawn over: of the judge's tokens within a sample, and of pairs of the model's own
tokens over all samples."""


@dataclass(frozen=True)
class ModelDescription:
    """A model that was sampled: the folder or name it came from, and how many weights it has."""

    name: str
    parameters: int


@dataclass(frozen=True)
class JudgeDescription:
    """Who scored the text. ``source_entropy``, nats a token, is None unless the judge is an exact source."""

    name: str
    parameters: int
    retokenized: bool
    source_entropy: float | None = None


@dataclass(frozen=True)
class Method:
    """How an evaluation was made, in full.

    Attributes:
        command: that measures the same student in this way, which is FOLDER in it.
        settings: the config's evaluate section, every key, but for its data.
        text: the data section of the real text, every key; None for none.
    """

    command: str
    settings: dict[str, Any]
    text: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sampling:
    """How the samples were made. ``samples`` rows of ``length`` tokens, ``batch`` at a time; ``device`` by name.

    ``teacher_samples`` is how many the teacher's many steps have, where these are fewer.

    ``prompted`` is True where they were written after prompts: figures are of what was written, up to its end.
    """

    sampler: str
    sampler_settings: dict[str, Any]
    draw: str
    precision: str
    process: str
    samples: int
    length: int
    batch: int
    seed: int
    bootstrap: int
    device: str
    torch: str
    prompted: bool | None = None
    teacher_samples: int | None = None

    @property
    def temperature(self) -> float:
        """The sampler's own."""
        return float(self.sampler_settings.get("temperature", 1.0))

    @property
    def size(self) -> str:
        """How many samples of how many tokens, in words."""
        prompts = ", prompt included" if self.prompted else ""
        fewer = f" ({self.teacher_samples} of the teacher's many steps)" if self.teacher_samples else ""
        return f"{self.samples} samples of {self.length} tokens{prompts}{fewer}"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of a set of texts. Entropies and nats in nats; ``…_ci`` are 95% intervals over samples.

    Those of perplexities and nats are of the bootstrap, those of pooled n-grams of the jackknife, those of means over
    texts normal; None in earlier files. Figures without one are `distill.evaluation.verification.REPEATED` alone.

    Attributes:
        excess_nats: where the judge is an exact source, nats a token above its entropy.
        judge_unigram_entropy: of the judge's tokens, where these are others than the model writes.
        divergence_nats: where the judge is an exact source and the sampler knows with which probability it drew, an
            unbiased estimate of an upper bound on KL(model ‖ source), nats a token: 0 for the source only, never below
            it for being sharp; see `SourceDenoiser.kl_bound`.
        distinct_2, distinct_3, distinct_4: different n-grams over all, of all texts together.
        repetition_4: the share of a text's 4-grams that occurred in it before, the mean over texts.
        longest_run: of one token in a text, in tokens, the mean over texts.
        self_bleu: BLEU-4 of a text against the others, over a bounded number of texts.
        mauve: how near to real texts, at most 1. energy_distance, gradient_moment: how far from them, without bias, so
            that either may be a little below 0. All three are in the states or gradients of a network, `Instruments`.
        energy_null: what ``energy_distance`` stays below with probability 0.95 for texts of one law.
        overlap_mean, overlap_max, overlap_share: the longest part of a text that stands in the training text, in
            tokens and as a share of the text.
        length_mean, length_quantiles: tokens up to the end of a text, that included; 5, 50 and 95% of the texts have at
            most so many. length_ended: the share of texts that have an end. length_distance: the Wasserstein distance
            to the lengths of real texts.
    """

    samples: int
    judge_perplexity: float
    judge_perplexity_ci: Interval
    excess_nats: float | None = None
    excess_nats_ci: Interval | None = None
    divergence_nats: float | None = None
    divergence_nats_ci: Interval | None = None
    unigram_entropy: float
    unigram_entropy_ci: Interval | None = None
    judge_unigram_entropy: float | None = None
    bigram_entropy: float
    bigram_entropy_ci: Interval | None = None
    distinct_2: float
    distinct_2_ci: Interval | None = None
    distinct_3: float | None = None
    distinct_3_ci: Interval | None = None
    distinct_4: float | None = None
    distinct_4_ci: Interval | None = None
    repetition_4: float | None = None
    repetition_4_ci: Interval | None = None
    longest_run: float | None = None
    longest_run_ci: Interval | None = None
    self_bleu: float | None = None
    mauve: float | None = None
    gradient_moment: float | None = None
    energy_distance: float | None = None
    energy_null: float | None = None
    overlap_mean: float | None = None
    overlap_mean_ci: Interval | None = None
    overlap_max: int | None = None
    overlap_share: float | None = None
    overlap_share_ci: Interval | None = None
    length_mean: float | None = None
    length_mean_ci: Interval | None = None
    length_quantiles: tuple[float, float, float] | None = None
    length_ended: float | None = None
    length_distance: float | None = None

    def entropy(self, axis: Axis) -> float:
        """Where the texts stand on an axis of a frontier."""
        if axis == "bigram":
            return self.bigram_entropy
        return self.unigram_entropy if self.judge_unigram_entropy is None else self.judge_unigram_entropy


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What texts were measured with, beside the judge.

    Attributes:
        real_texts: how many real texts they are compared with, which are none of the row "real text" where there were
            enough; 0 for none.
        featuriser: whose states and gradients are compared; None for none.
        mauve_clusters, mauve_scaling: of MAUVE. gradient_texts: of how many texts the Gradient Moment is.
        training_tokens: of the training text, that overlaps were looked for in; None for none.
    """

    real_texts: int
    featuriser: str | None = None
    featuriser_parameters: int | None = None
    mauve_clusters: int | None = None
    mauve_scaling: float | None = None
    gradient_texts: int | None = None
    training_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A published way to measure, which the rows `Evaluation.published` have; see `distill.config.protocols`."""

    name: str
    judge: str
    end_of_text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What was sampled, in how many passes of the network a sequence.

    ``critic_nfe``: of any other network. ``length_nfe``: passes before all others, which found out how long the text
    will be; None where the sampler has no rule for it.

    ``passes``: sequences that the network was sent, all texts together; fewer than texts × ``nfe`` where a batch's
    first pass, over canvases that are all the same, is one. ``peak_host_bytes``, ``peak_device_bytes``: the most that a
    process had in memory meanwhile, and on its GPU. None where unknown, as in files of earlier versions.
    """

    model: str
    sampler: str
    steps: int
    nfe: float
    nfe_ci: Interval | None = None
    nfe_median: float
    nfe_p95: float
    critic_nfe: float
    length_nfe: float | None = None
    passes: int | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row(Figures, Passes):
    """One model at one number of steps and one temperature.

    Attributes:
        temperature: that tokens were drawn at; None in files of a time when only the sampler's label said so.
        seconds: of sampling alone. Passes that several temperatures share are counted at the first of them.
    """

    temperature: float | None = None
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """How good a model's text is where it is as varied as real text: a point of its curve over temperatures.

    Rows of one model, sampler and number of steps at several temperatures make a curve of log-perplexity over an
    entropy. It is linear between neighbouring rows, and is read where the entropy is that of real text. See
    `distill.evaluation.frontier`.

    Attributes:
        sampler: the rule, without its temperature.
        nfe: passes of the network a sequence, the mean over the temperatures.
        axis: which entropy.
        entropy: that of real text, nats.
        reached: whether the curve has rows on both sides of it; there is no value where it has not.
        judge_perplexity: the curve's there, with its 95% bootstrap interval over samples.
        to_teacher: that over the teacher's with the same sampler and as many steps, with its interval.
        to_many: that over the teacher's at its many steps, with its interval.
    """

    model: str
    sampler: str
    steps: int
    nfe: float
    axis: Axis
    entropy: float
    reached: bool
    judge_perplexity: float | None = None
    judge_perplexity_ci: Interval | None = None
    to_teacher: float | None = None
    to_teacher_ci: Interval | None = None
    to_many: float | None = None
    to_many_ci: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Quality against step count.

    >>> print(Evaluation.load("runs/quickstart").table())  # doctest: +SKIP

    Attributes:
        models: by ``teacher`` and ``student``, where they came from; None where nobody said.
        reference: figures of real text; None where there was none.
        rows: the teacher's by number of steps and temperature, then the student's.
        served: the student's as inference engines sample from it, whose names are in place of the model's; None where
            none serves it.
        training: what the student's run spent; None where it is not known.
        cost: what measuring took.
        method: all that it takes to measure again; None in files of earlier versions.
        frontier: for each model, sampler, number of steps and axis, the perplexity at the entropy of real text; None
            where there was no real text.
        instruments: what the figures beside perplexity were measured with; None in files of earlier versions.
        protocol, published: a published way to sample and to judge, and the rows' models measured so; None for none.
    """

    models: dict[str, ModelDescription] | None = None
    judge: JudgeDescription
    sampling: Sampling
    reference: Figures | None
    rows: tuple[Row, ...]
    served: tuple[Row, ...] | None = None
    training: Cost | None = None
    cost: Cost | None = None
    method: Method | None = None
    frontier: tuple[Frontier, ...] | None = None
    instruments: Instruments | None = None
    protocol: Protocol | None = None
    published: tuple[Row, ...] | None = None

    def save(self, folder: str | Path) -> Path:
        """Write ``evaluation.json`` into a folder, made where there is none, whole or not at all; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return publish(Path(folder) / FILE, json_text(self))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote: the file, or the folder it is in.

        Raises:
            UserError: it is not there, or not whole.
        """
        path = Path(path)
        return load_result(cls, path / FILE if path.is_dir() else path, "evaluation; run fewstep evaluate again")

    @property
    def quality(self) -> str:
        """By which figure the rows are best compared, see `measure`."""
        return measure(self.rows)

    def table(self) -> str:
        """The frontier and all figures as text, a line a row, with captions."""
        from distill.evaluation.reports.terminal import evaluation_tables
        from distill.runtime.tables import text

        return "\n".join(text(table) for table in evaluation_tables(self))

    def markdown(self) -> str:
        """`table` in Markdown."""
        from distill.evaluation.reports.markdown import evaluation_markdown

        return evaluation_markdown(self)

    def plot(self) -> Figure:
        """Quality and bigram entropy against steps, as a matplotlib figure."""
        from distill.evaluation.reports.plots import evaluation_figure

        return evaluation_figure(self)

    def to_html(self, name: str = "Evaluation") -> str:
        """A page for a browser under that name, in one file that needs no other: plots, tables, and what they say."""
        from distill.evaluation.reports.html.page import Report, report_page

        return report_page([Report(name, self)]).html()


def at_own_temperature(rows: Iterable[Row], own: float) -> list[Row]:
    """One row of each model, sampler and number of steps, at the sampler's own temperature or as near as there is."""
    nearest: dict[tuple[str, str, int], tuple[float, Row]] = {}
    for row in rows:
        distance = 0.0 if row.temperature is None else abs(row.temperature - own)
        key = row.model, row.sampler, row.steps
        if key not in nearest or distance < nearest[key][0]:
            nearest[key] = distance, row
    return [row for _, row in nearest.values()]


def measure(rows: Iterable[Figures]) -> str:
    """By which of their figures rows are compared: the first of `MEASURES` that all of them have."""
    rows = list(rows)
    return next(name for name in MEASURES if all(getattr(row, name) is not None for row in rows))
