"""Whether a completion answers a question: exactly, as a number, by a regular expression, or as Python."""

from __future__ import annotations

import ast
import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

from distill.config.task import TaskConfig
from distill.evaluation.tasks.python_checker import load_function, scored
from distill.evaluation.tasks.question import Question
from teachers.errors import UserError

NUMBER = re.compile(
    r"""
    (?<![\w.])                                          # no part of a word, nor of a number that has begun
    (?P<sign>[-+\u2212]?)[$€£]?
    (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
    (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
    (?:\s*/\s*(?P<denominator>[0-9]+))?
    """,
    re.VERBOSE,
)
"""A number as people write it: 1,234.5, -3, $20, 1e-3, 3/4; a minus between two numbers is no sign."""


class Checker(ABC):
    """One way to say how right a completion is."""

    @abstractmethod
    def score(self, question: Question, completion: str) -> float:
        """From 0, wrong, to 1, right.

        Raises:
            UserError: a function of the user's raises, or returns something else.
        """

    def refuse(self, question: Question) -> None:
        """Refuse a question that can not be checked, before any is asked: its answers and an empty text are tried.

        Raises:
            UserError: its answer is not of the kind that is compared, or see `score`.
        """
        for completion in (*question.answers, ""):
            self.score(question, completion)


@dataclass(frozen=True)
class Exact(Checker):
    """The completion is an answer, but for white space at its ends."""

    def score(self, question: Question, completion: str) -> float:
        """See `Checker.score`."""
        return float(completion.strip() in {answer.strip() for answer in question.answers})


@dataclass(frozen=True)
class Numeric(Checker):
    """Equal as numbers: the first one after the first ``marker``, or the last one of a text where that is None.

    An answer that holds no marker is read to its last number.
    """

    marker: str | None

    def score(self, question: Question, completion: str) -> float:
        """See `Checker.score`."""
        value = number_in(completion, self.marker)
        return float(value is not None and value in {self._answer(answer) for answer in question.answers})

    def refuse(self, question: Question) -> None:
        """See `Checker.refuse`."""
        for answer in question.answers:
            if self._answer(answer) is None:
                raise UserError(
                    f"{question.place}: answer {answer[:40]!r} holds no number; mend it, or set another checker"
                )

    def _answer(self, answer: str) -> Fraction | None:
        has_marker = self.marker is not None and self.marker in answer
        return number_in(answer, self.marker if has_marker else None)


@dataclass(frozen=True)
class Regex(Checker):
    """The first match's first group, or all of a match without groups, is an answer but for white space at its ends."""

    pattern: str

    def score(self, question: Question, completion: str) -> float:
        """See `Checker.score`."""
        match = re.search(self.pattern, completion)
        if match is None:
            return 0.0
        value = match[1] if match.re.groups else match[0]  # None for a group that took no part
        return float(value is not None and value.strip() in {answer.strip() for answer in question.answers})


@dataclass(frozen=True)
class Ast(Checker):
    """The completion parses as Python; with ``equal``, into the same tree as an answer."""

    equal: bool

    def score(self, question: Question, completion: str) -> float:
        """See `Checker.score`."""
        tree = parsed(completion)
        return float(tree is not None and (not self.equal or tree in map(parsed, question.answers)))

    def refuse(self, question: Question) -> None:
        """See `Checker.refuse`."""
        if self.equal and None in map(parsed, question.answers):
            raise UserError(f"{question.place}: the answer is not Python, and equal compares trees; mend it")


class Python(Checker):
    """A function of the user's, called with prompt, completion and answer, and the row where it takes that.

    Args:
        name: ``module:function`` or ``FILE.py:function``.

    Raises:
        UserError: see `load_function`.
    """

    def __init__(self, name: str):
        self.name, (self.function, self.takes_row) = name, load_function(name)

    def score(self, question: Question, completion: str) -> float:
        """See `Checker.score`."""
        values = (question.prompt, completion, question.answer, *([question.row] if self.takes_row else []))
        return scored(self.function, values, f"{question.place}: checker {self.name}")


def checker_of(config: TaskConfig) -> Checker:
    """What a config names, its function imported.

    Raises:
        UserError: see `load_function`.
    """
    match config.checker:
        case "exact":
            return Exact()
        case "numeric":
            return Numeric(config.marker)
        case "regex":
            return Regex(config.pattern or "")
        case "ast":
            return Ast(config.equal)
    assert config.function is not None  # checked where it was set
    return Python(config.function)


def number_in(text: str, marker: str | None = None) -> Fraction | None:
    """The first number after the first ``marker``, or the last one of all where that is None; None where there is none.

    >>> number_in("5 - 3 = 2 apples"), number_in("#### 1,234.50 or 7", "####")
    (Fraction(2, 1), Fraction(2469, 2))
    """
    if marker is not None:
        _, _, after = text.partition(marker)
        match = NUMBER.search(after)
        return None if match is None else _value(match)
    matches = [*NUMBER.finditer(text)]
    return _value(matches[-1]) if matches else None


def _value(match: re.Match[str]) -> Fraction | None:
    sign = "-" if match["sign"] in ("-", "\u2212") else ""
    try:
        value = Fraction(f"{sign}{match['digits'].replace(',', '')}{match['exponent'] or ''}")
        return value / int(match["denominator"] or 1)
    except (ValueError, ZeroDivisionError):  # Python reads no integer of thousands of digits
        return None


def parsed(text: str) -> str | None:
    """The syntax tree of Python code, in words; None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the code looks like
            return ast.dump(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
