"""Runs, or a comparison, as one page for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.comparison.kept import kept_runs
from distill.comparison.reports.html.page import comparison_page
from distill.comparison.results import FILE as COMPARISON
from distill.comparison.results import Comparison
from distill.evaluation.reports.html.page import report_page
from distill.evaluation.reports.html.run import run_report
from distill.pages.page import Page
from distill.runtime.world import World, local_device
from teachers.errors import UserError
from teachers.files import publish

FILE = "report.html"


def report(folders: Sequence[Path], out: Path | None = None, prompts: int = 3) -> Path:
    """Write a page on runs, which stand side by side, or on one comparison.

    Args:
        folders: of runs that have been evaluated, of evaluations, or of one comparison.
        out: a file that ends with .html; by default report.html in the only folder.
        prompts: that teacher and student of each run answer; 0 for none.

    Returns:
        The file's path.

    Raises:
        UserError: a folder holds nothing to be shown, or nobody says where to write.
    """
    path = _target(folders, out)
    return publish(path, _page(folders, prompts).html())


def _target(folders: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        if len(folders) > 1:
            raise UserError(f"{len(folders)} folders share no place for a page; name a file with --out report.html")
        return folders[0] / FILE
    if out.suffix != ".html" or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"cannot write a page to {out}; name a file that ends with .html, in a folder that exists")
    return out


def _page(folders: Sequence[Path], prompts: int) -> Page:
    compared = [folder for folder in folders if (folder / COMPARISON).is_file()]
    if not compared:
        world = World(0, 1, local_device(0))
        return report_page([run_report(folder, prompts, world) for folder in folders])
    if len(folders) > 1:
        raise UserError(f"{compared[0]} is a comparison, which has a page of its own; give it alone")
    [folder] = folders
    comparison = Comparison.load(folder)
    return comparison_page(comparison, folder.resolve().name, kept_runs(comparison, folder))
