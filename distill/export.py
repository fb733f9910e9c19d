"""A finished student as a folder for other people's software: checked first, then written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import cast, get_args

from distill.finished import STEPS, Student
from distill.runtime.cost import FILE as COST
from distill.runtime.result_files import json_text
from distill.runtime.run_folder import new_folder
from students.export import export_student
from teachers.denoiser import Compression, Layout
from teachers.errors import UserError, nearest

COMPRESSIONS: tuple[str, ...] = get_args(Compression)
LAYOUTS: tuple[str, ...] = get_args(Layout)


def export(
    student: Student,
    out: str | Path,
    compress: str | None = None,
    steps: int | None = None,
    measured: str = "",
    layout: str | None = None,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a student into the new folder ``out``.

    Args:
        compress: None for the precision of the teacher's files, or one of `COMPRESSIONS`.
        steps: forward passes the export is meant for, of a canvas or as its sampler counts them; by default `STEPS`, or
            one a token where that is fewer.
        measured: Markdown for the model card.
        beside: other files of the folder, name → text; `Student.training` is one of them in any case.
        layout: one of `LAYOUTS`; by default own, and stock for compressed weights, which its readers take.

    Raises:
        UserError: see `export_student`; an unknown compression or layout, steps the canvas has no tokens for, a model
            that is compressed already, or an ``out`` that holds something.
    """
    if compress is not None and compress not in COMPRESSIONS:
        raise UserError(
            f"compress {compress!r} is unknown{nearest(compress, list(COMPRESSIONS))}; allowed are "
            f"{', '.join(COMPRESSIONS)}, or leave it out for whole weights"
        )
    layout = layout or ("own" if compress is None else "stock")
    if layout not in LAYOUTS:
        raise UserError(
            f"layout {layout!r} is unknown{nearest(layout, list(LAYOUTS))}; allowed are {', '.join(LAYOUTS)}"
        )
    steps = _steps(student, steps)
    if student.compressed:
        raise UserError("the student is compressed already; export the float32 model it was made from")
    if compress is not None and "compression" not in student.denoiser.capabilities:
        raise UserError(f"compress {compress} has no meaning for a student of this family; leave it out")
    words = None if isinstance(student.words, UserError) else student.words
    card = f"{student.origin}\n\n{measured}"
    if student.training is not None:
        beside = {**beside, COST: json_text(student.training)}
    if compress is not None:
        card += "\nFigures are of the float32 weights, before compression.\n"
    existed = Path(out).exists()
    folder = new_folder(out)
    try:
        return export_student(
            student.denoiser, words, folder, steps, cast("Compression | None", compress), card,
            student.canvas_length, student.schedule, student.sampler, cast("Layout", layout), beside,
        )  # fmt: skip
    except BaseException as error:
        if not existed:
            folder.rmdir()
        if not isinstance(error, OSError):
            raise
        why = error.strerror or str(error)
        raise UserError(f"cannot write to {out}: {why}; name a folder with room that you may write to") from error


def _steps(student: Student, steps: int | None) -> int:
    """Those that were asked for, or the default.

    Raises:
        UserError: none, or more than the sampler can make.
    """
    sampler = student.sampler.fitted(student.denoiser)
    if steps is None:
        return min(STEPS, sampler.one_a_token(student.canvas_length))
    most = sampler.steps_between(student.canvas_length)[1]
    if not 1 <= steps <= most:
        whole = "a block" if sampler.budget == "block" else "a canvas"
        counted = f", the tokens of {whole}" if sampler.bounded else ""
        raise UserError(f"steps {steps} is outside 1 to {most}{counted}; give a number within")
    return steps
