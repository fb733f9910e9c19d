"""Models to write with: a teacher, and the students made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import distill.export
import distill.finished
import distill.generation
import distill.models
from distill.config.models import TeacherConfig
from distill.config.overrides import validate
from distill.evaluation.reports.markdown import measured
from distill.evaluation.results import FILE, Evaluation
from distill.generation import Generated
from distill.runtime.result_files import json_text
from distill.runtime.world import local_device
from fewstep.quiet import quiet
from students.samplers import Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.description import Description
from teachers.errors import UserError
from teachers.families import Checkpoint

TEACHER_STEPS = 256  # of a teacher's `generate`, unless told otherwise [own]


@dataclass(frozen=True)
class Model:
    """A denoiser with its tokenizer.

    Attributes:
        name: where it came from.
        finished: the network, and what it was made for.
    """

    name: str
    finished: distill.finished.Student

    @property
    def denoiser(self) -> Denoiser:
        """The frozen network, a torch module."""
        return self.finished.denoiser

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.finished.tokenizer

    @property
    def spec(self) -> DenoiserSpec:
        """What must be known to write with it: its mask, its vocabulary, its attention."""
        return self.denoiser.spec

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        num: int = 1,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        length: int | None = None,
        chat: bool = False,
    ) -> Generated:
        """Write texts: ``num`` for each prompt, the prompt kept at their start.

        >>> generated = student.generate(["The boat", "A lamp"], num=2, steps=8, seed=0)  # doctest: +SKIP
        >>> len(generated.texts), generated.tokens.shape, generated.nfe.tolist()  # doctest: +SKIP
        (4, torch.Size([4, 64]), [8, 8, 8, 8])

        Args:
            steps: by default what the model was made for, or one a token where that is fewer. Ancestral sampling can
                take more steps than there are tokens: the more, the fewer tokens are drawn at once.
            sampler: such as ``fewstep.Dilated()``, or its name, or that of a family for the sampler it was released
                with; by default what the model was made for.
            temperature: 1 is the model's own law; by default the sampler's. A greedy sampler draws where it is given.
            seed: the same seed gives the same texts; a random one by default.
            length: tokens a text, prompt included; by default what the model was made for.
            chat: prompts are what a user says, put into the tokenizer's chat template; texts are the answers alone.

        Raises:
            UserError: a value out of range, a prompt that does not fit or can not be encoded, or no chat template.
        """
        with quiet():
            return distill.generation.generate(
                self.finished, prompts, num, steps, sampler, temperature, seed, length, chat
            )  # fmt: skip

    def log_probs(
        self,
        tokens: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
        t: Tensor | float | None = None,
    ) -> Tensor:
        """What the model thinks of every position: (B, L, V) float32 log-probabilities, the mask's column −∞.

        >>> tokens = torch.full((1, 4), student.tokenizer.mask_token_id)  # doctest: +SKIP
        >>> student.log_probs(tokens).exp().sum(-1)  # doctest: +SKIP
        tensor([[1., 1., 1., 1.]])

        Args:
            tokens: (B, L), the mask where a token is unknown.
            attention_mask: (B, L), 0 where a token is padding.
            t: (B,) or one time for all rows, for models that read it; by default the share of tokens that are masked.
        """
        device = self.denoiser.device
        rows = torch.as_tensor(tokens, device=device)
        real = None if attention_mask is None else torch.as_tensor(attention_mask, device=device).bool()
        time = None if t is None else torch.as_tensor(t, dtype=torch.float64, device=device).expand(len(rows))
        denoiser = self.denoiser if t is None else self.denoiser.timed()
        return denoiser.log_probs(Canvas.of(rows, denoiser.spec.mask_id, real, time))


@dataclass(frozen=True)
class Teacher(Model):
    """A frozen many-step model.

    Attributes:
        config: how it was loaded.
    """

    config: TeacherConfig


@dataclass(frozen=True)
class Student(Model):
    """A few-step model."""

    def export(
        self,
        folder: str | Path,
        compress: str | None = None,
        steps: int | None = None,
        layout: str | None = None,
        evaluation: Evaluation | None = None,
    ) -> Path:
        """Write it into a new folder, which loads wherever its teacher did, and which `load_student` reads.

        Args:
            compress: "int8", "int4", or None for weights as precise as the teacher's files.
            steps: passes it is meant for; by default 8, or one a token where that is fewer.
            layout: "own", the format of the teacher's release; "stock", that of transformers; "sdar", that of SDAR,
                for servers of block attention. By default own, or stock for compressed weights.
            evaluation: of the student, which the folder carries and its card shows; see ``fewstep.verify``.

        Raises:
            UserError: the folder holds something, or what was written does not read back as it was.
        """
        return export(self, folder, compress, steps, layout, evaluation)


def load_teacher(
    name: str | Path,
    revision: str | None = None,
    block_size: int | None = None,
    family: str | None = None,
    tokenizer: str | Path | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    **options: Any,
) -> Teacher:
    """Load a teacher: any denoiser whose family is known.

    >>> teacher = fewstep.load_teacher("bundled:teacher")  # doctest: +SKIP
    >>> teacher.generate(seed=0).texts[0][:20]  # doctest: +SKIP
    ' abvoneary anowatino'

    Args:
        name: a folder, ``bundled:NAME``, or a hub name.
        revision: the commit of a hub name.
        block_size: reads a model with block attention in blocks of another size than its checkpoint says.
        family: such as "diffullama", for a checkpoint that does not say what it is.
        tokenizer: a folder or name, where the model has no tokenizer of its own. Probabilities can be asked for without
            one.
        precision: of its weights as they are read and computed with. By default float32 on the CPU, and on a GPU
            bfloat16 for a model whose files hold nothing finer, else float32.
        options: other keys of a config's ``teacher`` section: mask_id, shift, attention, process, trust_remote_code.

    Raises:
        UserError: it can not be loaded, or is no denoiser.
    """
    written = {"path": str(name), "revision": revision, "block_size": block_size, "family": family}
    written |= {"tokenizer": None if tokenizer is None else str(tokenizer), **options}
    config = validate(TeacherConfig, written)
    with quiet():
        checkpoint = distill.models.find_teacher(config)
        words = found_tokenizer(checkpoint, config)
        known = None if isinstance(words, UserError) else words
        dtype = precision_of(checkpoint, precision)
        denoiser = distill.models.load_frozen(config, checkpoint, known, dtype)
    denoiser.to(local_device(0))
    sampler, steps = distill.finished.own_sampler(checkpoint, denoiser, TEACHER_STEPS)
    finished = distill.finished.Student(
        denoiser, words, denoiser.spec.length, config.process, steps, sampler,
        f"The model `{config.path}` as it is.", checkpoint=checkpoint, options=distill.models.options_of(config),
    )  # fmt: skip
    return Teacher(config.path, finished, config)


def precision_of(checkpoint: Checkpoint, precision: str | None) -> torch.dtype:
    """What a model is read in: as it was asked for, or else bfloat16 on a GPU where no digit of it is lost.

    Raises:
        UserError: no such precision.
    """
    if precision not in (None, "float32", "bfloat16"):
        raise UserError(f"precision {precision!r} is unknown; allowed are float32 and bfloat16, or leave it out")
    if precision is not None:
        return getattr(torch, precision)
    return checkpoint.lossless(torch.bfloat16) if local_device(0).type == "cuda" else torch.float32


def found_tokenizer(checkpoint: Checkpoint, config: TeacherConfig) -> PreTrainedTokenizerBase | UserError:
    """The tokenizer that a config names, or the checkpoint's own; else why it is not here, for whoever needs one.

    Raises:
        UserError: the one that is named, or lies in the model's folder, can not be loaded.
    """
    elsewhere = config.tokenizer is None and checkpoint.family.tokenizer(checkpoint) != str(checkpoint.folder)
    try:
        return distill.models.tokenizer_of(checkpoint, config.tokenizer)
    except UserError as error:
        if not elsewhere:
            raise
        return error


def describe(name: str | Path, family: str | None = None, tokenizer: str | Path | None = None) -> Description:
    """What a checkpoint is, and what can be done with it; no weight is read.

    >>> fewstep.describe("bundled:teacher").network  # doctest: +SKIP
    'Qwen3ForCausalLM'

    Args:
        name: a folder, ``bundled:NAME``, or a hub name with its commit.
        family, tokenizer: as for `load_teacher`.

    Raises:
        UserError: whatever loading it would refuse, but for the weights' values.
    """
    with quiet():
        return distill.models.describe_name(str(name), family, None if tokenizer is None else str(tokenizer))


def load_student(folder: str | Path) -> Student:
    """Load a student: an export, a run's folder, or another folder that holds a denoiser.

    Raises:
        UserError: it can not be loaded, or is no denoiser.
    """
    with quiet():
        finished = distill.finished.open_student(folder)
    finished.denoiser.to(local_device(0))
    return Student(str(folder), finished)


def export(
    model: Model,
    folder: str | Path,
    compress: str | None = None,
    steps: int | None = None,
    layout: str | None = None,
    evaluation: Evaluation | None = None,
) -> Path:
    """See `Student.export`; for a teacher as well."""
    beside = {} if evaluation is None else {FILE: json_text(evaluation)}
    card = "" if evaluation is None else measured(evaluation)
    with quiet():
        return distill.export.export(model.finished, folder, compress, steps, card, layout, beside)
