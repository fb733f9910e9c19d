"""`fewstep compare`: several methods on one teacher with one budget, a process a run, all measured the same way.

The folder holds ``command.json`` (what was asked for), what `Schedule` writes, and what is made of it:
``comparison.md``, ``report.html``, ``frontier.png`` and ``speed.png``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.comparison.bench import SharedBench
from distill.comparison.budget import parse_budget
from distill.comparison.fairness import check_fair, check_same_command, load_contenders, split_words
from distill.comparison.kept import kept_runs
from distill.comparison.reports.html.page import comparison_page
from distill.comparison.reports.markdown import comparison_markdown
from distill.comparison.reports.plots import frontier_figure, speed_figure
from distill.comparison.reports.terminal import comparison_tables
from distill.comparison.results import FILE, Command, Comparison
from distill.comparison.schedule import Schedule
from distill.config import DistillConfig
from distill.config.precision import settled
from distill.evaluation.reports.plots import save_figure
from distill.runtime.messages import say, warn
from distill.runtime.progress import progress_bar
from distill.runtime.run_folder import RunFolder, check_new_folder, new_folder
from distill.runtime.tables import print_table
from distill.runtime.world import keep_memory
from distill.training.guards import termination
from teachers.files import publish


def compare_command(words: list[str], out: Path, budget: str, seeds: int = 3, jobs: int = 1) -> Path:
    """Distil with every config and seed, measure each run's last averaged student, and the teacher, and tabulate.

    The same command continues what a kill has left, and with more seeds what is done. A run that fails is a row that
    says why.

    Args:
        words: configs, and ``key.sub=value`` overrides of all of them.
        budget: of each run: ``2000u``, updates, or ``10m``, minutes from the start of the first update to the end of
            the last; start-up, what the teacher writes beforehand and the last checkpoint do not count. See
            `Schedule.calibrate`.
        seeds: runs of each config, with ``train.seed`` 0, 1, ….
        jobs: runs at once, which share the cores; nothing trains while something is measured.

    Returns:
        The path of ``comparison.json``.

    Raises:
        UserError: configs that differ in more than the method, another command than the folder's, or a mistake.
        SystemExit: with code `PREEMPTED`, after a SIGTERM.
    """
    keep_memory()
    paths, overrides = split_words(words)
    before = _command_before(out)
    contenders = {  # every one as it is run, here and by its own processes
        label: settled(config, before.get("configs", {}).get(label))
        for label, config in load_contenders(paths, overrides).items()
    }
    check_fair(contenders)
    if any(config.evaluate.task is not None for config in contenders.values()):
        warn(f"a comparison judges text and asks no task; run fewstep evaluate on each run in {out} for evaluate.task")
    command, asked = _command(words, contenders, budget, seeds, jobs)
    if before:
        check_same_command(before, asked, out)
    else:
        check_new_folder(out)
    bench = SharedBench(next(iter(contenders.values())), with_teacher=not (out / "teacher.json").is_file())
    if not before:
        new_folder(out)
    holder = RunFolder(out)  # keeps its lock for as long as it lives
    holder.lock()
    if before != asked:
        publish(out / "command.json", json.dumps(asked, indent=1) + "\n")
    with progress_bar() as bar, termination() as terminated:
        schedule = Schedule(out, command, contenders, parse_budget(budget), bench, bar, terminated)
        comparison = schedule.run()
    _report(comparison, schedule, out)
    return out / FILE


def _command_before(out: Path) -> dict[str, Any]:
    """What a comparison that is to go on was started with; nothing for a new one."""
    path = out / "command.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _command(
    words: list[str], contenders: dict[str, DistillConfig], budget: str, seeds: int, jobs: int
) -> tuple[Command, dict[str, Any]]:
    """What is asked for, as results tell it, and as ``command.json`` keeps it."""
    command = Command(words, str(parse_budget(budget)), seeds, jobs)
    configs = {label: config.model_dump(mode="json") for label, config in contenders.items()}
    return command, {"budget": command.budget, "seeds": seeds, "jobs": jobs, "configs": configs}


def _report(comparison: Comparison, schedule: Schedule, out: Path) -> None:
    publish(out / "comparison.md", comparison_markdown(comparison))
    save_figure(frontier_figure(comparison), out / "frontier.png")
    save_figure(speed_figure(comparison), out / "speed.png")
    publish(out / "report.html", comparison_page(comparison, out.resolve().name, kept_runs(comparison, out)).html())
    for table in comparison_tables(comparison):
        print_table(table)
    files = {run.name: run.result for run in schedule.runs}
    for run in comparison.failures:
        warn(f"{run.name}: {run.failed}; remove {files[run.name]} to try again", "failed")
    say(f"written: {out / FILE}, comparison.md, report.html, frontier.png and speed.png")
