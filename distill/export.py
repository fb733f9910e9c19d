"""A finished student as a folder for other people's software: checked first, then written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from distill.models import STEPS, Student
from distill.runtime.run_folder import new_folder
from students.export import export_student
from teachers.denoiser import Compression
from teachers.errors import UserError, nearest

COMPRESSIONS: tuple[str, ...] = get_args(Compression)


def export(
    student: Student, out: str | Path, compress: str | None = None, steps: int | None = None, measured: str = ""
) -> Path:
    """Write a student into the new folder ``out``.

    Args:
        compress: None for float32, or one of `COMPRESSIONS`.
        steps: forward passes the export is meant for; by default `STEPS`, or one a token where that is fewer.
        measured: Markdown for the model card.

    Raises:
        UserError: see `export_student`; an unknown compression, steps the canvas has no tokens for, an already
            compressed model, or an ``out`` that holds something.
    """
    if compress is not None and compress not in COMPRESSIONS:
        raise UserError(
            f"compress {compress!r} is unknown{nearest(compress, list(COMPRESSIONS))}; allowed are "
            f"{', '.join(COMPRESSIONS)}, or leave it out for float32"
        )
    steps = min(STEPS, student.canvas_length) if steps is None else steps
    if not 1 <= steps <= student.canvas_length:
        raise UserError(f"steps {steps} is outside 1 to {student.canvas_length}, the tokens of a canvas; give fewer")
    if student.compressed:
        raise UserError("the student is compressed already; export the float32 model it was made from")
    if compress is not None and "compression" not in student.denoiser.capabilities:
        raise UserError(f"compress {compress} has no meaning for a student of this family; leave it out")
    card = f"{student.origin}\n\n{measured}"
    if compress is not None:
        card += "\nFigures are of the float32 weights, before compression.\n"
    existed = Path(out).exists()
    folder = new_folder(out)
    try:
        return export_student(
            student.denoiser, student.tokenizer, folder, steps, cast("Compression | None", compress), card,
            student.canvas_length, student.schedule, student.sampler,
        )  # fmt: skip
    except BaseException as error:
        if not existed:
            folder.rmdir()
        if not isinstance(error, OSError):
            raise
        why = error.strerror or str(error)
        raise UserError(f"cannot write to {out}: {why}; name a folder with room that you may write to") from error
