"""The same prompts, answered by teacher and student in various numbers of passes, for people to read.

What was written is kept in the run's folder, and is not written again for as long as nobody asks for something else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distill.evaluation.reference import held_out
from distill.evaluation.sample import at_precision, many_steps, sampler_of
from distill.evaluation.subject import Subject, run_subject
from distill.generation import decoded, first_end, steps_of_rows
from distill.runtime.checkpoints import best_checkpoint, sha256
from distill.runtime.progress import track
from distill.runtime.result_files import json_text, load_result
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from students.fill import Pass, fill, fill_to_length
from students.samplers import Sampler
from teachers.canvas import Canvas
from teachers.compilation import clock
from teachers.denoiser import Denoiser, end_ids
from teachers.errors import UserError
from teachers.files import publish

FILE = "answers.json"
TEACHER_STEPS = (16, 8)
"""That the teacher answers in, besides its many."""
STUDENT_STEPS = (16, 8, 4)
PROMPT_SHARE = 4  # a quarter of a held-out row is its prompt [own]
WINDOW = 8  # tokens before a token that it is read with: as many bytes as a letter has, and a word's first space

Write = tuple[int, int]
"""A token, and the pass that wrote it."""


@dataclass(frozen=True)
class Written:
    """A token as it reads, and the pass of its row that wrote it; 0 where it was given.

    Attributes:
        earlier: what stood there before, likewise, from the first to the last; "" where the place was open again.
    """

    text: str
    number: int
    earlier: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What one model wrote in one number of steps.

    Attributes:
        nfe: passes a text, the mean. seconds: of all texts together.
        texts: one for each prompt, without it.
        canvas: the first of them, token by token, prompt included; empty where the sampler sets a text's length.
    """

    model: str
    sampler: str
    steps: int
    nfe: float
    seconds: float
    texts: tuple[str, ...]
    canvas: tuple[Written, ...]


@dataclass(frozen=True)
class Answers:
    """Answers to the same prompts.

    Attributes:
        asked: what they depend on: prompts, models and how these are sampled.
        plan: models and numbers of steps, of which `answers` has the first ones until all is written.
        prompts: "" where a text is written from nothing.
        real: how the held-out text goes on; None where nobody knows.
    """

    asked: dict[str, Any]
    plan: tuple[tuple[str, int], ...]
    prompts: tuple[str, ...]
    real: tuple[str, ...] | None
    answers: tuple[Answer, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all is written."""
        return len(self.answers) == len(self.plan)


def run_answers(run: RunFolder, prompts: int, world: World) -> Answers:
    """Those of a run's teacher and its best student; what was kept of them is not written again.

    Args:
        prompts: how many.

    Raises:
        UserError: the run has no checkpoint, its models can not be loaded, or a kept file is damaged.
    """
    path, asked, kept = run.path / FILE, _asked(run, prompts), kept_answers(run)
    if kept is not None and kept.asked == asked and kept.whole:
        return kept
    writer = Writer(run_subject(run, [], world).on(world.device), prompts)
    answers = kept if kept is not None and kept.asked == asked else writer.begin(asked)
    for model, steps in track(answers.plan[len(answers.answers) :], "answers"):
        answers = replace(answers, answers=(*answers.answers, writer.answer(model, steps)))
        publish(path, json_text(answers))
    return answers


def kept_answers(run: RunFolder) -> Answers | None:
    """Those that a run's folder holds, if it does.

    Raises:
        UserError: the file is damaged.
    """
    path = run.path / FILE
    return load_result(Answers, path, "file of answers; restore it") if path.is_file() else None


def _asked(run: RunFolder, prompts: int) -> dict[str, Any]:
    """All that answers depend on, as far as it can be told without loading a model."""
    checkpoint = best_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"run {run.path} has no checkpoint yet; let it train until it has saved one")
    config = run.started_with()
    asked = {
        "prompts": prompts,
        "checkpoint": checkpoint.name,
        "weights": sha256(checkpoint / "manifest.json"),
        "config": {key: config.get(key) for key in ("teacher", "data", "length", "evaluate")},
    }
    return json.loads(json.dumps(asked, default=str))


class Writer:
    """Writes on the canvases of held-out prompts."""

    def __init__(self, subject: Subject, prompts: int):
        """Take so many prompts of the subject's text; blank canvases where it has none."""
        self.subject, self.tokenizer = subject, subject.tokenizer
        precision = subject.config.precision
        self.denoisers = {name: at_precision(model, precision) for name, model in subject.models.items()}
        self.mask_id = next(iter(self.denoisers.values())).spec.mask_id
        self.canvas, self.labels = _canvases(subject, prompts, self.mask_id)

    def begin(self, asked: dict[str, Any]) -> Answers:
        """What is to be written."""
        given = self.canvas.tokens.masked_fill(self.canvas.open, -1)
        prompts = [decoded(self.tokenizer, row[row >= 0].tolist()) for row in given]
        real = None if self.labels is None else tuple(self._text(row, i) for i, row in enumerate(self.labels))
        plan = [("teacher", steps) for steps in (self.subject.config.teacher_steps, *TEACHER_STEPS)]
        plan += [("student", steps) for steps in STUDENT_STEPS]
        fitting = dict.fromkeys((model, self._fitting(model, steps)) for model, steps in plan)
        return Answers(asked, tuple(fitting), tuple(prompts), real)

    @torch.no_grad()  # not inference_mode: a guided sampler needs gradients
    def answer(self, model: str, steps: int) -> Answer:
        """What a model writes in so many steps."""
        denoiser, sampler, critic = self._how(model, steps)
        canvas = self.canvas.to(denoiser.device)
        randomness = sampler.randomness(self.subject.config.seed, (steps,), range(len(canvas)), denoiser.device)
        start, passes = clock(), PassRecorder(canvas.length)
        settings = {"process": self.subject.process, "critic": critic}
        each = steps_of_rows(canvas, sampler, steps)
        if sampler.length is None:
            filled = fill(denoiser, canvas, sampler, each, randomness, record=passes, **settings)
        else:
            filled = fill_to_length(denoiser, canvas, sampler, each, randomness, **settings)
        seconds, tokens = clock() - start, filled.tokens.cpu()
        return Answer(
            model=model,
            sampler=sampler.label,
            steps=steps,
            nfe=float(filled.nfe.double().mean()),
            seconds=seconds,
            texts=tuple(self._text(row, i) for i, row in enumerate(tokens)),
            canvas=self._canvas(tokens[0], passes) if sampler.length is None else (),
        )

    def _how(self, model: str, steps: int) -> tuple[Denoiser, Sampler, nn.Module | None]:
        subject, denoiser = self.subject, self.denoisers[model]
        many = model == "teacher" and steps == subject.config.teacher_steps
        config = many_steps(subject.config, denoiser) if many else subject.config
        critic = subject.critic if model == "student" else None
        return denoiser, sampler_of(config, critic).suited(denoiser), critic

    def _fitting(self, model: str, steps: int) -> int:
        """The number of steps nearest to this one that the sampler can make on these canvases."""
        denoiser, sampler, _ = self._how(model, steps)
        fewest = sampler.fewest_steps(self.canvas, denoiser)
        if model == "teacher" and steps == self.subject.config.teacher_steps:
            return max(fewest, steps)
        most = sampler.steps_between(int(self.canvas.open.sum(1).max()))[1]
        return max(fewest, min(steps, most))

    def _text(self, row: Tensor, number: int) -> str:
        """What was written on a canvas; after a prompt of the data up to its end."""
        is_open = self.canvas.open[number]
        given, written = row[~is_open].tolist(), row[is_open].tolist()
        text = self.subject.text
        if text is not None and text.prompted:
            ends = end_ids(next(iter(self.subject.models.values())))
            return decoded(self.tokenizer, written[: first_end(written, ends)])
        before, whole = decoded(self.tokenizer, given), decoded(self.tokenizer, given + written)
        return whole.removeprefix(before) if whole.startswith(before) else decoded(self.tokenizer, written)

    def _canvas(self, row: Tensor, passes: PassRecorder) -> tuple[Written, ...]:
        return tuple(
            Written(text, *self._writes(writes))
            for text, writes in zip(pieces(self.tokenizer, row.tolist()), passes.writes, strict=True)
        )

    def _writes(self, writes: Sequence[Write]) -> tuple[int, tuple[tuple[str, int], ...]]:
        """The pass of the last one, and what the others read."""
        earlier = tuple((self._token(token), number) for token, number in writes[:-1])
        return (writes[-1][1] if writes else 0), earlier

    def _token(self, token: int) -> str:
        return "" if token == self.mask_id else decoded(self.tokenizer, [token])


class PassRecorder:
    """What was written at each position of the first row, by which of its passes; see `students.fill.fill`.

    Attributes:
        writes: of each of L positions, from the first to the last; a mask where it was opened again.
    """

    def __init__(self, length: int):
        self.writes: list[list[Write]] = [[] for _ in range(length)]
        self._made = 0
        self._now: Tensor | None = None

    def __call__(self, one: Pass) -> None:
        """Count a pass that the row took."""
        for row in (one.asked.rows == 0).nonzero().flatten().tolist():
            self._made += 1
            after = one.after()[row]
            changed = one.commit[row] if self._now is None else one.commit[row] | (after != self._now)
            for place in changed.nonzero().flatten().tolist():
                self.writes[place].append((int(after[place]), self._made))
            self._now = after


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; of the bytes of one letter, the last one adds it."""
    texts, start = [], 0
    for end in range(1, len(tokens) + 1):
        first = max(0, start - WINDOW)
        before, now = (decoded(tokenizer, list(tokens[first:place])) for place in (start, end))
        if now.endswith("\N{REPLACEMENT CHARACTER}") and end - start < 4 and end < len(tokens):
            texts.append("")
            continue
        texts.append(
            now.removeprefix(before) if now.startswith(before) else decoded(tokenizer, list(tokens[start:end]))
        )
        start = end
    return texts


def _canvases(subject: Subject, prompts: int, mask_id: int) -> tuple[Canvas, Tensor | None]:
    """What is to be written on, and the whole rows where they are known."""
    if subject.text is None:
        return Canvas.blank(prompts, subject.length, mask_id), None
    text = held_out(subject.text, subject.config.seed, prompts, subject.length, subject.tokenizer, mask_id)
    if text.prompts is not None:
        return text.prompts, text.rows if text.rows is not None and len(text.rows) == prompts else None
    assert text.rows is not None, "text without prompts has rows"
    given = torch.tensor([_prompt_length(subject.tokenizer, row.tolist()) for row in text.rows])
    is_open = torch.arange(subject.length) >= given[:, None]
    return Canvas.of(text.rows.masked_fill(is_open, mask_id), mask_id), text.rows


def _prompt_length(tokenizer: PreTrainedTokenizerBase, row: Sequence[int]) -> int:
    """About a `PROMPT_SHARE`-th of a row, at the end of a word if there is one in the prompt's second half."""
    most = len(row) // PROMPT_SHARE
    texts = pieces(tokenizer, row[: most + 1])
    ends = [place for place in range(most // 2, most + 1) if texts[place][:1].isspace()]
    return max(1, ends[-1] if ends else most)
