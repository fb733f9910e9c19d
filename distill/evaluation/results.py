"""What an evaluation measured: figures of teacher, student and real text, as ``evaluation.json`` holds them.

A class has the keys of the file as its fields, in the file's order. Needs neither torch nor matplotlib to be imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teachers.errors import UserError
from teachers.files import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "evaluation.json"
MEASURES = ("divergence_nats", "excess_nats", "judge_perplexity")
"""Of quality, the most telling first: without sharpness counted as a gain, without an error of a judge."""

Interval = tuple[float, float]
Result = TypeVar("Result")


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
class Sampling:
    """How the samples were made. ``samples`` rows of ``length`` tokens, ``batch`` at a time; ``device`` by name.

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

    @property
    def size(self) -> str:
        """How many samples of how many tokens, in words."""
        prompts = ", prompt included" if self.prompted else ""
        return f"{self.samples} samples of {self.length} tokens{prompts}"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of a set of texts. Entropies and nats in nats; ``…_ci`` are 95% bootstrap intervals over samples.

    Attributes:
        excess_nats: where the judge is an exact source, nats a token above its entropy.
        divergence_nats: where the judge is an exact source and the sampler knows with which probability it drew, an
            unbiased estimate of an upper bound on KL(model ‖ source), nats a token: 0 for the source only, never below
            it for being sharp; see `MarkovDenoiser.kl_bound`.
    """

    samples: int
    judge_perplexity: float
    judge_perplexity_ci: Interval
    excess_nats: float | None = None
    excess_nats_ci: Interval | None = None
    divergence_nats: float | None = None
    divergence_nats_ci: Interval | None = None
    unigram_entropy: float
    bigram_entropy: float
    distinct_2: float


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What was sampled, in how many passes of the network a sequence; ``critic_nfe``: of any other network."""

    model: str
    sampler: str
    steps: int
    nfe: float
    nfe_median: float
    nfe_p95: float
    critic_nfe: float


@dataclass(frozen=True, kw_only=True)
class Row(Figures, Passes):
    """One model at one number of steps; ``seconds`` of sampling alone."""

    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Quality against step count.

    >>> print(Evaluation.load("runs/quickstart").table())  # doctest: +SKIP

    Attributes:
        models: by ``teacher`` and ``student``, where they came from; None where nobody said.
        reference: figures of real text; None where there was none.
        rows: the teacher's by number of steps, then the student's.
        served: the student's as inference engines sample from it, whose names are in place of the model's; None where
            none serves it.
    """

    models: dict[str, ModelDescription] | None = None
    judge: JudgeDescription
    sampling: Sampling
    reference: Figures | None
    rows: tuple[Row, ...]
    served: tuple[Row, ...] | None = None

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
        """The figures as text, a line a row, with a caption."""
        from distill.evaluation.reports.terminal import evaluation_table
        from distill.runtime.tables import text

        return text(evaluation_table(self))

    def markdown(self) -> str:
        """`table` in Markdown."""
        from distill.evaluation.reports.markdown import evaluation_markdown

        return evaluation_markdown(self)

    def plot(self) -> Figure:
        """Quality and bigram entropy against steps, as a matplotlib figure."""
        from distill.evaluation.reports.plots import evaluation_figure

        return evaluation_figure(self)


def measure(rows: Iterable[Figures]) -> str:
    """By which of their figures rows are compared: the first of `MEASURES` that all of them have."""
    rows = list(rows)
    return next(name for name in MEASURES if all(getattr(row, name) is not None for row in rows))


def as_json(value: Any) -> Any:
    """A result as plain values; a field that is None by default is left out where it is None."""
    if is_dataclass(value):
        here = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: as_json(part) for f, part in here if not (part is None and f.default is None)}
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    return [as_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def json_text(value: Any) -> str:
    """`as_json` as a file holds it."""
    return json.dumps(as_json(value), indent=1) + "\n"


def from_json(kind: type[Result], values: Any) -> Result:
    """A result from the plain values that `as_json` gives.

    Raises:
        ValueError: a value is missing or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{place}: {first['msg']}") from error


def load_result(kind: type[Result], path: Path, what: str) -> Result:
    """A result from its file; see `read_result`."""
    return read_result(path, what, lambda values: from_json(kind, values))


def read_result(path: Path, what: str, make: Callable[[Any], Result]) -> Result:
    """A result from its file.

    Args:
        what: a result's name and how to get a new one, for the message.
        make: from plain values; raises ValueError, KeyError or TypeError where they are not whole.

    Raises:
        UserError: the file is not there, or not whole.
    """
    try:
        return make(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a folder or a file with results") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a whole {what}, or remove it ({error})") from error
