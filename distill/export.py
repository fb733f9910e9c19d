"""`fewstep export`: a student as a folder that stock transformers loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from distill.checkpoint import best_checkpoint, verify_checkpoint
from distill.config import ModelConfig
from distill.data import load_tokenizer
from distill.distil import load_averaged
from distill.progress import console
from distill.report import markdown_table
from distill.run_folder import RunFolder, new_folder
from distill.world import name_accelerator
from students.export import Compression, export_student
from students.planner import PlannedDenoiser, load_planned
from students.samplers import SamplerConfig, written_sampler
from teachers.errors import UserError, nearest
from teachers.families.causal import CausalDenoiser
from teachers.process import Schedule
from teachers.source import model_folder, parse_source

COMPRESSIONS: tuple[str, ...] = get_args(Compression)
STEPS = 8  # what a student is exported for unless told otherwise [own]


@dataclass(frozen=True)
class Student:
    """A finished denoiser and what it was made for.

    Attributes:
        canvas_length: tokens it is to write at once: as many as it was evaluated with, or else trained.
        schedule: of the masked process it was trained with.
        steps: forward passes it is meant for.
        sampler: what it was evaluated with while it was trained.
        origin: one sentence for the model card.
    """

    denoiser: CausalDenoiser | PlannedDenoiser
    tokenizer: PreTrainedTokenizerBase
    canvas_length: int
    schedule: Schedule
    steps: int
    sampler: SamplerConfig
    origin: str


def open_student(name: str | Path) -> Student:
    """Load the averaged student of a run folder's best checkpoint, or a model folder such as an export.

    Raises:
        UserError: no such folder, neither kind of folder, no checkpoint yet, damaged files, or an autoregressive model.
    """
    disable_progress_bar()
    name_accelerator()
    source = parse_source(str(name))
    path = Path(source.path) if source.revision is None else model_folder(str(name))
    if not path.is_dir():
        raise UserError(f"{name} is not a folder; give a run folder, an exported model or bundled:NAME")
    if (path / "config.json").is_file():
        student = _open_model(path, path.name if source.revision is None else str(name))
    elif (path / "config.yaml").is_file():
        student = _open_run(path)
    else:
        raise UserError(
            f"{name} is neither a run folder (config.yaml) nor a model folder (config.json); give one of the two"
        )
    if student.denoiser.spec.attention == "causal":
        raise UserError(f"{name} is an autoregressive model, not a denoiser; give a distilled or pretrained denoiser")
    student.denoiser.requires_grad_(False).eval()
    return student


def _open_model(path: Path, name: str) -> Student:
    tokenizer = load_tokenizer(str(path))
    denoiser = load_planned(str(path), tokenizer)
    written = denoiser.model.generation_config.to_dict()
    return Student(
        denoiser,
        tokenizer,
        written.get("canvas_length") or denoiser.spec.max_length,
        written.get("noise_schedule") or "log-linear",
        written.get("max_denoising_steps") or STEPS,
        written_sampler(written.get("sampler")),
        f"Exported from the model folder `{name}`.",
    )


def _open_run(path: Path) -> Student:
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
    sampler = written_sampler(measured.get("sampler"))
    return Student(denoiser, tokenizer, length or denoiser.spec.max_length, schedule, STEPS, sampler, origin)


def export_command(run: Path, out: Path, compress: str | None = None, steps: int = STEPS) -> Path:
    """Write the student of a run folder, or a model folder, into the new folder ``out``.

    Args:
        compress: None for float32, or one of `COMPRESSIONS`.
        steps: forward passes the export is meant for.

    Raises:
        UserError: see `open_student` and `export_student`; an unknown compression, steps the canvas has no tokens
            for, an already compressed model, or an ``out`` that holds something.
    """
    if compress is not None and compress not in COMPRESSIONS:
        raise UserError(
            f"--compress {compress!r} is unknown{nearest(compress, list(COMPRESSIONS))}; allowed are "
            f"{', '.join(COMPRESSIONS)}, or leave it out for float32"
        )
    student = open_student(run)
    if not 1 <= steps <= student.canvas_length:
        raise UserError(f"--steps {steps} is outside 1 to {student.canvas_length}, the tokens of a canvas; give fewer")
    if getattr(student.denoiser.model.config, "quantization_config", None) is not None:
        raise UserError(f"{run} is compressed already; export the float32 model it was made from")
    card = f"{student.origin}\n\n{_measurements(run)}"
    if compress is not None:
        card += "\nFigures are of the float32 weights, before compression.\n"
    existed = out.exists()
    folder = new_folder(out)
    try:
        export_student(
            student.denoiser, student.tokenizer, folder, steps, cast("Compression | None", compress), card,
            student.canvas_length, student.schedule, student.sampler,
        )  # fmt: skip
    except BaseException as error:
        if not existed:
            folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot write to {out}: {reason}; name a folder with room that you may write to"
            ) from error
        raise
    megabytes = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    console.print(
        f"exported to {folder}: {megabytes:.1f} MB, {compress or 'float32'}, reloaded and compared; "
        f"next: fewstep generate {folder}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return folder


def _measurements(run: Path) -> str:
    """The table of RUN/evaluation.json, or a sentence that there is none."""
    path = run / "evaluation.json"
    if not path.is_file():
        return f"Not measured yet: `fewstep evaluate {run.name}` before the export puts a table here."
    try:
        return markdown_table(json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a whole evaluation ({type(error).__name__}: {error}); "
            f"run fewstep evaluate {run} again, or remove it"
        ) from error
