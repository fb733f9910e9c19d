"""A task: its questions, read from a file, and what checks their answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distill.completions import Completion
from distill.config import EvaluateConfig
from distill.config.task import CHECKERS, TaskConfig
from distill.data.layout import CorpusFile, corpus_file
from distill.data.prompts import prompt_text
from distill.data.tables import TableRow, read_table
from distill.evaluation.tasks.checkers import Checker, checker_of
from distill.evaluation.tasks.question import Question
from distill.evaluation.tasks.results import TaskDescription
from distill.generation import encoded
from distill.runtime.world import World
from teachers.errors import UserError


@dataclass(frozen=True)
class Task:
    """Questions that are ready to be asked.

    Attributes:
        prompts: their tokens.
        digest: of the file.
    """

    config: TaskConfig
    questions: list[Question]
    prompts: list[list[int]]
    checker: Checker
    digest: str

    def scores(self, completions: Sequence[Completion]) -> list[float]:
        """How right each question's completion is, from 0 to 1.

        Raises:
            UserError: see `Checker.score`.
        """
        pairs = zip(self.questions, completions, strict=True)
        return [self.checker.score(question, completion.text) for question, completion in pairs]

    @property
    def description(self) -> TaskDescription:
        """For results."""
        config, path = self.config, Path(self.config.path)
        settings = {name: getattr(config, name) for name in CHECKERS[config.checker]}
        set_ones = {name: value for name, value in settings.items() if value not in (None, False)}
        return TaskDescription(
            config.name or path.stem, path.name, self.digest, len(self.questions), config.checker, set_ones
        )


def load_task(config: TaskConfig, tokenizer: PreTrainedTokenizerBase, world: World) -> Task:
    """Read a task's file, and try its checker on each question's own answers before any is asked.

    Raises:
        UserError: the file is missing, empty or not whole; a row without prompt or answer; a prompt that can not be
            encoded; a function that can not be imported; or an answer that can not be checked.
    """
    checker = checker_of(config)

    def read() -> tuple[list[Question], str]:
        file = _file(config)
        questions = _questions(file, config, tokenizer)
        for question in questions:
            checker.refuse(question)
        return questions, hashlib.sha256(file.path.read_bytes()).hexdigest()

    questions, digest = world.on_main(read)
    return Task(config, questions, [encoded(tokenizer, q.prompt) for q in questions], checker, digest)


def check_task(config: EvaluateConfig) -> None:
    """Refuse a task whose file or function is not there, before a model is loaded; there need be no task."""
    if config.task is not None:
        _file(config.task)
        checker_of(config.task)


def _file(config: TaskConfig) -> CorpusFile:
    path = Path(os.path.expanduser(config.path))
    if not path.is_file():
        raise UserError(f"task file {config.path!r} does not exist; give JSON lines or Parquet, one question a row")
    file = corpus_file(path)
    if file.kind == "text":
        raise UserError(f"task file {config.path!r} is text; give JSON lines or Parquet, one question a row")
    return file


def _questions(file: CorpusFile, config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    columns = {"task.columns.prompt": config.columns.prompt}
    compares = config.checker != "ast" or config.equal
    if compares:
        columns["task.columns.answer"] = config.columns.answer
    questions = []
    for row in read_table(file, columns):
        prompt = prompt_text(row, config.columns.prompt, tokenizer)
        questions.append(
            Question(prompt, _answer(row, config.columns.answer) if compares else None, row.values, row.place)
        )
        if len(questions) == config.questions:
            break
    if not questions:
        raise UserError(f"task file {config.path!r} holds no question; give one that does")
    return questions


def _answer(row: TableRow, column: str) -> str | list[str]:
    """A right answer, or a list of them."""
    value = row.values[column]
    answers = value if isinstance(value, list) else [value]
    if not answers:
        raise UserError(f"{row.place}: column {column!r} holds no answer; remove the row, or fill it")
    for answer in answers:
        if not isinstance(answer, str):
            raise UserError(
                f"{row.place}: column {column!r} holds {'null' if answer is None else type(answer).__name__}, not "
                "text; write answers as strings"
            )
        row.checked(answer)
    return value
