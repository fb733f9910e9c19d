"""A finished model and what it was made for: the student of a run or an export, or a model as it was released."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
import yaml
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from distill.data.tokenizers import load_tokenizer
from distill.models import check_usable, load_averaged, load_released, tokenizer_of
from distill.runtime.checkpoints import best_checkpoint, verify_checkpoint
from distill.runtime.cost import Cost
from distill.runtime.run_folder import RunFolder
from students.planner import load_planned
from students.samplers import Ancestral, Sampler, released_sampler, written_sampler
from teachers.denoiser import Denoiser
from teachers.errors import UserError, nearest
from teachers.families import Checkpoint, resolve
from teachers.process import Schedule
from teachers.source import model_folder, parse_source, read_object

if TYPE_CHECKING:
    from students.critic import Discriminator

STEPS = 8  # what a student is exported for unless told otherwise [own]


@dataclass(frozen=True)
class Student:
    """A finished denoiser and what it was made for.

    Attributes:
        canvas_length: tokens it is to write at once: as many as it was evaluated with, or else trained.
        schedule: of the masked process it was trained with.
        steps: forward passes it is meant for.
        compressed: whether its weights are no longer those it was trained to.
        sampler: what it was trained for.
        origin: one sentence for the model card.
        words: its tokenizer, or why there is none to be had.
        checkpoint: it was loaded from; None where it is of a run or in memory alone.
        options: it was loaded with.
        training: what its run spent; None where nobody knows.
    """

    denoiser: Denoiser
    words: PreTrainedTokenizerBase | UserError
    canvas_length: int
    schedule: Schedule
    steps: int
    sampler: Sampler
    origin: str
    compressed: bool = False
    checkpoint: Checkpoint | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Cost | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What its tokens mean.

        Raises:
            UserError: there is no tokenizer.
        """
        if isinstance(self.words, UserError):
            raise UserError(str(self.words))
        return self.words

    def critic(self, sampler: Sampler, precision: torch.dtype = torch.float32) -> Discriminator | None:
        """What a sampler asks: the discriminator that was released with the model, frozen, beside it.

        Returns:
            None where the sampler asks none, or none was released.
        """
        if not sampler.needs_critic or self.checkpoint is None:
            return None
        critic = load_released(self.checkpoint, precision, **self.options)
        return None if critic is None else critic.to(self.denoiser.device)


def open_student(name: str | Path) -> Student:
    """Load the averaged student of a run folder's best checkpoint, or a model folder such as an export.

    Raises:
        UserError: no such folder, neither kind of folder, no checkpoint yet, damaged files, or an autoregressive model.
    """
    disable_progress_bar()
    path = Path(parse_source(str(name)).path)
    is_run = (path / "config.yaml").is_file() and not (path / "config.json").is_file()
    student = _open_run(path) if is_run else _open_model(str(name))
    if student.denoiser.spec.attention == "causal":
        raise UserError(
            f"{name} is an autoregressive model; make a denoiser of it with fewstep convert, or give a distilled or "
            "pretrained denoiser"
        )
    student.denoiser.requires_grad_(False).eval()
    return student


def _open_model(name: str) -> Student:
    source = parse_source(name)
    if source.revision is None and not Path(source.path).is_dir():
        raise UserError(f"{name} is not a folder; give a run folder, an exported model or bundled:NAME")
    folder = model_folder(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{name} is neither a run folder (config.yaml) nor a model folder (config.json); give one of the two"
        )
    checkpoint = resolve(name)
    check_usable(checkpoint)
    tokenizer = tokenizer_of(checkpoint)
    denoiser = load_planned(checkpoint, tokenizer)
    written = written_settings(folder)
    sampler, steps = own_sampler(checkpoint, denoiser, STEPS)
    return Student(
        denoiser,
        tokenizer,
        written.get("canvas_length") or denoiser.spec.length,
        written_schedule(written),
        written.get("max_denoising_steps") or steps,
        written_sampler(written["sampler"]) if "sampler" in written else sampler,
        f"Exported from the model folder `{folder.name if source.revision is None else name}`.",
        "quantization_config" in checkpoint.config,
        checkpoint,
        training=Cost.load(folder),
    )


def is_model(name: str) -> bool:
    """Whether a name is a model's: a folder with a config.json, ``bundled:NAME``, or a hub name with its commit."""
    source = parse_source(name)
    return source.revision is not None or (Path(source.path) / "config.json").is_file()


def written_settings(folder: Path) -> dict[str, Any]:
    """What a model's generation_config.json says: of an export, what the student is made for."""
    settings = folder / "generation_config.json"
    return read_object(settings) if settings.is_file() else {}


def written_schedule(written: Mapping[str, Any]) -> Schedule:
    """The noise schedule that settings name; log-linear where they name none.

    Raises:
        UserError: there is no such one.
    """
    name, allowed = written.get("noise_schedule") or "log-linear", list(get_args(Schedule))
    if name not in allowed:
        raise UserError(
            f"noise_schedule is {name!r}{nearest(str(name), allowed)}; set it to {' or '.join(allowed)} in "
            "generation_config.json"
        )
    return name


def own_sampler(checkpoint: Checkpoint, denoiser: Denoiser, steps: int) -> tuple[Sampler, int]:
    """How a model writes that says nothing of it: as its family was released, in a step a token; else ancestrally.

    Args:
        steps: of what no sampler was released with.
    """
    sampler = released_sampler(checkpoint.family.name, denoiser.spec)
    return (Ancestral(), steps) if sampler is None else (sampler, denoiser.spec.length)


def _open_run(path: Path) -> Student:
    from distill.config import ModelConfig

    run = RunFolder.open(path)
    checkpoint = best_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint yet; wait for the first one, or resume the run")
    state = verify_checkpoint(checkpoint)
    tokenizer = load_tokenizer(str(run.tokenizer))
    # read as plain values: a run of an earlier version may hold keys that today's config no longer has
    config: dict[str, Any] = yaml.safe_load(run.config.read_text("utf-8"))
    teacher = {k: v for k, v in config.get("teacher", {}).items() if k in ModelConfig.model_fields}
    denoiser = load_averaged(checkpoint / "student-ema", tokenizer, ModelConfig(**teacher) if teacher else None)
    measured = config.get("evaluate") or {}
    length = measured.get("length") or (config.get("data") or {}).get("length") or config.get("length")
    origin = f"The averaged weights after {state['update']} updates of"
    if "teacher" in config:
        schedule = config["teacher"].get("process", "log-linear")
        origin += f" `{config['objective']['name']}` distillation; teacher `{config['teacher']['path']}`."
    else:
        schedule = config.get("process", "log-linear")
        origin += " masked-diffusion pretraining."
    sampler = written_sampler(config.get("sampler") or measured.get("sampler"))  # the latter in older runs
    return Student(
        denoiser, tokenizer, length or denoiser.spec.length, schedule, STEPS, sampler, origin, training=Cost.load(path)
    )
