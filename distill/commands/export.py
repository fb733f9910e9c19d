"""`fewstep export`: a student as a folder that stock transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from distill.evaluation.results import FILE, Evaluation
from distill.models import STEPS, open_student
from distill.runtime.messages import say
from distill.runtime.run_folder import new_folder
from students.export import export_student
from teachers.denoiser import Compression
from teachers.errors import UserError, nearest

COMPRESSIONS: tuple[str, ...] = get_args(Compression)


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
    if student.compressed:
        raise UserError(f"{run} is compressed already; export the float32 model it was made from")
    if compress is not None and "compression" not in student.denoiser.capabilities:
        raise UserError(f"--compress {compress} has no meaning for a student of this family; leave it out")
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
    say(
        f"exported to {folder}: {megabytes:.1f} MB, {compress or 'float32'}, reloaded and compared; "
        f"next: fewstep generate {folder}",
    )
    return folder


def _measurements(run: Path) -> str:
    """The table of RUN/evaluation.json, or a sentence that there is none."""
    path = run / FILE
    if not path.is_file():
        return f"Not measured yet: `fewstep evaluate {run.name}` before the export puts a table here."
    return Evaluation.load(path).markdown()
