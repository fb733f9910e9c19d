"""The ``evaluate.task`` section: questions, and how an answer is checked."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from distill.config.samplers import AnySampler
from teachers.errors import nearest
from teachers.section import Section

CHECKERS = {
    "exact": (),
    "numeric": ("marker",),
    "regex": ("pattern",),
    "ast": ("equal",),
    "python": ("function",),
}
"""How an answer may be checked, and the settings of each."""


def _named_checker(name: str) -> str:
    if name not in CHECKERS:
        names = list(CHECKERS)
        raise ValueError(f"{name!r} is no checker{nearest(name, names)}; allowed are {', '.join(names)}")
    return name


class TaskColumns(Section):
    """What the columns of a task file are called."""

    prompt: str = "prompt"
    answer: str = "answer"


class TaskConfig(Section):
    """A file of prompts and answers; see `distill.evaluation.tasks`.

    Attributes:
        path: JSON lines or Parquet, one question a row.
        name: what tables and files call it; by default the file's name.
        checker: one of `CHECKERS`.
        marker: for "numeric": the number after it counts; None for the last number of the text.
        pattern: for "regex": a regular expression, whose first group is compared, or all that it matches.
        equal: for "ast": the same syntax tree as the answer, not just any.
        function: for "python": ``module:function`` or ``FILE.py:function``, whose code is run and so trusted.
        questions: only the first so many; None for all.
        teacher: whether a run's teacher is asked beside its student; once is enough for many runs of the same one.
        temperatures: that each rule is tried at, 0 for greedy draws; none for each rule's own.
        samplers: other rules to measure beside ``evaluate.sampler``.
        teacher_samplers: others still, for the teacher alone, whose best rule at as many passes is what a student is
            compared with.
    """

    path: str
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    checker: Annotated[str, AfterValidator(_named_checker)] = "exact"
    marker: str | None = Field(default=None, min_length=1)
    pattern: str | None = Field(default=None, min_length=1)
    equal: bool = False
    function: str | None = None
    columns: TaskColumns = TaskColumns()
    questions: int | None = Field(default=None, gt=0)
    teacher: bool = True
    temperatures: list[Annotated[float, Field(ge=0)]] = Field(default=[])
    samplers: list[AnySampler] = Field(default=[])
    teacher_samplers: list[AnySampler] = Field(default=[])

    @field_validator("pattern")
    @classmethod
    def _regular(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}); mend it") from error
        return pattern

    @field_validator("function")
    @classmethod
    def _two_parts(cls, function: str | None) -> str | None:
        if function is not None and not all(function.rpartition(":")):
            raise ValueError(f"{function!r} names no function; write module:function or FILE.py:function")
        return function

    @model_validator(mode="after")
    def _settings_of_the_checker(self) -> TaskConfig:
        for checker, names in CHECKERS.items():
            for name in names:
                given = getattr(self, name) not in (None, False)
                if given and checker != self.checker:
                    raise ValueError(
                        f"{name} is set, which is of checker {checker!r}, and checker is {self.checker!r}; set "
                        f"checker={checker}, or leave {name} out"
                    )
        for checker, name, what in (("regex", "pattern", "a regular expression"), ("python", "function", "a function")):
            if self.checker == checker and getattr(self, name) is None:
                raise ValueError(f"checker {checker!r} needs {what}; set {name}")
        return self
