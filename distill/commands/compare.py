"""`fewstep compare`: several methods on one teacher with one budget, a process a run, all measured the same way.

The folder holds ``command.json`` (what was asked for), ``configs/`` (each as it is run), ``teacher.json``,
``calibration/`` where the budget is time, and ``runs/LABEL/seed-S/`` with its log and its result beside it; and what is
made of these: ``comparison.json``, ``comparison.md``, ``frontier.png`` and ``speed.png``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from rich.progress import Progress
from safetensors import safe_open
from torch import Tensor, nn

from distill.commands.evaluate import reference_rows, reference_text
from distill.comparison.compare import (
    CALIBRATION,
    Budget,
    check_fair,
    check_same_command,
    chosen_settings,
    comparison_rows,
    load_contenders,
    parse_budget,
    seconds_per_update,
    split_words,
    update_seconds,
    why_failed,
)
from distill.comparison.report import markdown, plot_frontier, plot_speed, print_comparison
from distill.config import DistillConfig, EvaluateConfig, dump_config
from distill.config.precision import settled
from distill.data.teacher_rows import writing_seconds
from distill.evaluation.evaluate import check, evaluate, sampler_of
from distill.evaluation.judge import load_judge
from distill.models import load_averaged, load_discriminator, load_teacher
from distill.runtime.exits import PREEMPTED
from distill.runtime.messages import say, warn
from distill.runtime.progress import progress_bar
from distill.runtime.run_folder import LOCK, RunFolder, check_new_folder, new_folder, read_lines
from distill.runtime.world import LAUNCHER, keep_memory
from distill.training.checkpoint import AVERAGE, latest_checkpoint, verify_checkpoint
from distill.training.guards import termination
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.files import publish
from teachers.process import MaskedProcess

LOOK = 0.2  # seconds between looks at what runs
PATIENCE = 600  # seconds that a run of a killed comparison may take to end its update, save and leave


def compare_command(words: list[str], out: Path, budget: str, seeds: int = 3, jobs: int = 1) -> Path:
    """Distil with every config and seed, measure each run's last averaged student, and the teacher, and tabulate.

    The same command continues what a kill has left, and with more seeds what is done. A run that fails is a row that
    says why.

    Args:
        words: configs, and ``key.sub=value`` overrides of all of them.
        budget: of each run: ``2000u``, updates, or ``10m``, minutes from the start of the first update to the end of
            the last; start-up, what the teacher writes beforehand and the last checkpoint do not count. See
            `Comparison.calibrate`.
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
    there = (out / "command.json").is_file()
    before = json.loads((out / "command.json").read_text("utf-8")) if there else {}
    contenders = {  # every one as it is run, here and by its own processes
        label: settled(config, before.get("configs", {}).get(label))
        for label, config in load_contenders(paths, overrides).items()
    }
    check_fair(contenders)
    asked = {
        "budget": str(parse_budget(budget)),
        "seeds": seeds,
        "jobs": jobs,
        "configs": {label: config.model_dump(mode="json") for label, config in contenders.items()},
    }
    if there:
        check_same_command(before, asked, out)
    else:
        check_new_folder(out)
    bench = Bench(next(iter(contenders.values())), with_teacher=not (out / "teacher.json").is_file())
    if not there:
        new_folder(out)
    holder = RunFolder(out)  # keeps its lock for as long as it lives
    holder.lock()
    if before != asked:
        publish(out / "command.json", json.dumps(asked, indent=1) + "\n")
    comparison = Comparison(out, words, contenders, parse_budget(budget), seeds, jobs, bench)
    with progress_bar() as bar, termination() as terminated:
        comparison.run(bar, terminated)
    result = comparison.write()
    publish(out / "comparison.md", markdown(result))
    plot_frontier(result, out / "frontier.png")
    plot_speed(result, out / "speed.png")
    print_comparison(result)
    for run in comparison.runs:
        if (failed := run.read_result()["failed"]) is not None:
            warn(f"{run.name}: {failed}; remove {run.result} to try again", "failed")
    path = out / "comparison.json"
    say(f"written: {path}, comparison.md, frontier.png and speed.png")
    return path


class Bench:
    """What every student is measured with, and the teacher: one judge, one text, one noise.

    Raises:
        UserError: they can not be measured so; see `distill.evaluation.evaluate.check`.
    """

    def __init__(self, config: DistillConfig, with_teacher: bool):
        self.config, self.evaluation = config, config.evaluate
        self.length = self.evaluation.length or config.sequence_length
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.process = MaskedProcess(config.teacher.process)
        # where the sampler asks a critic, the teacher, which has none, is sampled without
        self._without_critic = self.evaluation.model_copy(update={"sampler": sampler_of(self.evaluation, None)})
        teacher, self.tokenizer = load_teacher(config.teacher)
        self.judge = load_judge(self.evaluation.judge, self.tokenizer, self.evaluation.retokenize, self.device)
        self._teacher = self._reference = None
        if with_teacher:
            text = reference_text(config, self.tokenizer)
            self._teacher = teacher
            self._reference = reference_rows(text, self.evaluation, self.length, self.tokenizer) if text else None
            check(teacher, None, self.judge, self._without_critic, self.length, self._reference)

    def measure_teacher(self) -> dict[str, Any]:
        """The evaluation of real text and the teacher, which is forgotten: training needs the memory."""
        teacher, self._teacher = self._teacher, None
        assert teacher is not None
        return self._measure(teacher, None, self._without_critic, self._reference)

    def measure_student(self, checkpoint: Path, config: DistillConfig) -> dict[str, Any]:
        """The evaluation of a checkpoint's averaged student, with its own critic where the sampler asks one."""
        student, critic = load_averaged(checkpoint / AVERAGE, self.tokenizer, config.teacher), None
        if config.evaluate.sampler.needs_critic:
            teacher, _ = load_teacher(config.teacher)
            critic = load_discriminator(config, checkpoint, teacher, student).to(self.device)
        return self._measure(None, student, self.evaluation, None, critic)

    def _measure(
        self,
        teacher: Denoiser | None,
        student: Denoiser | None,
        evaluation: EvaluateConfig,
        reference: Tensor | None,
        critic: nn.Module | None = None,
    ) -> dict[str, Any]:
        teacher, student = (
            model if model is None else model.requires_grad_(False).eval().to(self.device)
            for model in (teacher, student)
        )
        return evaluate(
            teacher, student, self.judge, evaluation, self.length, reference, evaluation.seed, self.process, critic
        )


@dataclass(frozen=True)
class Run:
    """One run of one config: its folder, and beside it its log and its result, which is there when all is done."""

    label: str
    config: Path
    folder: Path
    overrides: tuple[str, ...]
    updates: int
    seed: int
    planned_seconds: float | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def result(self) -> Path:
        """What became of it."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def read_result(self) -> dict[str, Any]:
        """See `distill.comparison.compare.comparison_rows`."""
        return json.loads(self.result.read_text("utf-8"))

    @property
    def checkpoint(self) -> Path | None:
        """The one after the last update, once there is one."""
        last = latest_checkpoint(RunFolder(self.folder))
        return last if last is not None and last.name.endswith(f"-{self.updates:08d}") else None

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        path = RunFolder(self.folder).metrics
        return read_lines(path) if path.is_file() else []

    def done_updates(self) -> int:
        """How far it is, read from the end of its metrics."""
        path = RunFolder(self.folder).metrics
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            *lines, _unfinished = file.read().split(b"\n")
        return json.loads(lines[-1])["update"] if lines else 0

    def words(self) -> list[str]:
        """The command that starts or resumes it."""
        resume = ["--resume"] if (self.folder / "config.yaml").is_file() else []
        command = [sys.executable, "-m", "distill", "distill", str(self.config), "--run-dir", str(self.folder)]
        return [*command, *resume, *self.overrides, f"train.updates={self.updates}", f"train.seed={self.seed}"]


class Comparison:
    """The runs of a comparison and what has become of them."""

    def __init__(
        self,
        out: Path,
        words: list[str],
        contenders: dict[str, DistillConfig],
        budget: Budget,
        seeds: int,
        jobs: int,
        bench: Bench,
    ):
        self.out, self.words, self.contenders, self.budget, self.bench = out, words, contenders, budget, bench
        self.seeds, self.jobs = seeds, jobs
        cores = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        self.threads = max(1, cores // jobs)
        self.runs: list[Run] = []
        for folder in ("configs", "calibration"):
            (out / folder).mkdir(exist_ok=True)
        for label, config in contenders.items():
            publish(self.config_file(label), dump_config(config))
            (out / "runs" / label).mkdir(parents=True, exist_ok=True)

    def config_file(self, label: str) -> Path:
        """A config as it is run: later changes of the original do not reach the runs."""
        return self.out / "configs" / f"{label}.yaml"

    def run_folder(self, label: str, seed: int) -> Path:
        """Of one run."""
        return self.out / "runs" / label / f"seed-{seed}"

    def run(self, bar: Progress, terminated: Event) -> None:
        """Whatever is still to be done, in this order: the teacher, the calibration, run after run.

        Args:
            terminated: an event; when it is set, runs are asked to save, and this process leaves.
        """
        if not (self.out / "teacher.json").is_file():
            say("measuring the teacher and real text")
            bar.stop()  # the evaluation has a bar of its own
            publish(self.out / "teacher.json", json.dumps(self.bench.measure_teacher(), indent=1) + "\n")
            bar.start()
        calibration = self.calibrate(bar, terminated) if self.budget.minutes is not None else {}
        for seed in range(self.seeds):  # every label once, before any a second time: a first table early
            for label in self.contenders:
                seconds = calibration[label].get("seconds_per_update") if label in calibration else None
                failed = calibration[label]["failed"] if label in calibration else None
                updates = 0 if failed else self.budget.in_updates(seconds)
                planned = None if seconds is None else updates * seconds
                run = Run(label, self.config_file(label), self.run_folder(label, seed), (), updates, seed, planned)
                self.runs.append(run)
                if failed and not run.result.is_file():
                    self._conclude(run, f"calibration: {failed}")
        left = [run for run in self.runs if not run.result.is_file()]
        total = sum(run.updates for run in self.runs)
        task = bar.add_task("updates", total=total, completed=total - sum(r.updates for r in left), note="")
        for first in range(0, len(left), self.jobs):
            wave = left[first : first + self.jobs]
            failures = self._train([run for run in wave if run.checkpoint is None], bar, task, terminated)
            bar.stop()
            for run in wave:
                self._conclude(run, failures.get(run))
            bar.start()
            self.write()

    def calibrate(self, bar: Progress, terminated: Event) -> dict[str, dict[str, Any]]:
        """Measure each config's seconds per update in a run of `CALIBRATION` updates, where that has not been done.

        A learning-rate schedule depends on the number of updates, so a budget of time becomes one before the run.
        Runs keep the number when the machine's speed changes; their real seconds stand in the table.

        Returns:
            By label ``{"seconds_per_update": …, "failed": None}``, as kept in ``calibration/LABEL.json``, or
            ``{"failed": why}``, which is not kept: to try a run again is to calibrate it again.
        """
        measured: dict[str, dict[str, Any]] = {}
        left = []
        for label, config in self.contenders.items():
            # rows that the teacher writes at the start take long, and how good they are does not change the speed
            few = (f"teacher_samples={config.train.batch}",)
            folder = self.out / "calibration" / label
            run = Run(label, self.config_file(label), folder, few, CALIBRATION, 0)
            if run.result.is_file():
                measured[label] = run.read_result()
            elif all(self.run_folder(label, seed).with_suffix(".json").is_file() for seed in range(self.seeds)):
                measured[label] = {"failed": "as its results say"}
            else:
                left.append(run)
        task = bar.add_task("calibrating", total=len(left) * CALIBRATION, note="", visible=bool(left))
        for first in range(0, len(left), self.jobs):
            wave = left[first : first + self.jobs]
            failures = self._train([run for run in wave if run.checkpoint is None], bar, task, terminated)
            for run in wave:
                measured[run.label] = {"failed": failures.get(run)}
                if run not in failures:
                    seconds = seconds_per_update(run.metrics())
                    measured[run.label] |= {"updates": CALIBRATION, "seconds_per_update": seconds}
                    publish(run.result, json.dumps(measured[run.label]) + "\n")
                    say(f"{run.label}: {seconds:.3f} seconds an update")
                shutil.rmtree(run.folder, ignore_errors=True)
        bar.remove_task(task)
        return measured

    def _train(self, wave: list[Run], bar: Progress, task: Any, terminated: Event) -> dict[Run, str]:
        """Run some at once to their ends; returns those that failed, and why."""
        children: dict[Run, Any] = {}
        spoken = {run: run.log.stat().st_size if run.log.is_file() else 0 for run in wave}
        before = next(t.completed for t in bar.tasks if t.id == task)
        try:
            for run in wave:
                wait_until_free(run.folder)
                if run.folder.exists() and not (run.folder / "config.yaml").is_file():
                    shutil.rmtree(run.folder)  # killed while it was being made; there is nothing in it
                children[run] = start(run.words(), run.log, self.threads)
            while any(child.poll() is None for child in children.values()):
                if terminated.wait(LOOK):
                    break
                done = {run: run.done_updates() for run in wave}
                note = "; ".join(f"{run.name}: {n} of {run.updates}" for run, n in done.items())
                bar.update(task, completed=before + sum(done.values()), note=note)
        finally:
            for child in children.values():
                if child.poll() is None:
                    child.terminate()
            codes = {run: child.wait() for run, child in children.items()}
        if terminated.is_set() or PREEMPTED in codes.values():
            say("terminated; start again with the same command to continue")
            raise SystemExit(PREEMPTED)
        bar.update(task, completed=before + sum(run.updates for run in wave))
        failures = {}
        for run, code in codes.items():
            if code:
                with run.log.open("rb") as file:
                    file.seek(spoken[run])
                    failures[run] = why_failed(code, file.read().decode("utf-8", "replace"))
        return failures

    def _conclude(self, run: Run, failed: str | None) -> None:
        """Measure a run that has ended, and write its result."""
        seconds = sum(update_seconds(run.metrics()))
        rows, trained, rows_seconds = [], None, None
        if failed is None:
            assert run.checkpoint is not None
            say(f"{run.name}: {run.updates} updates in {seconds:,.0f} seconds; measuring")
            try:
                verify_checkpoint(run.checkpoint)
                trained = parameters_trained(run.checkpoint)
                rows_seconds = writing_seconds(RunFolder(run.folder))
                rows = self.bench.measure_student(run.checkpoint, self.contenders[run.label])["rows"]
            except (UserError, RuntimeError, ValueError) as error:  # all NaN, no memory, no critic for the sampler
                failed = f"evaluation: {' '.join(str(error).split())[:300]}"
        if failed is not None:
            warn(f"{run.name}: {failed}", "failed")
        result = {
            "label": run.label,
            "objective": self.contenders[run.label].objective.name,
            "seed": run.seed,
            "updates": run.updates,
            "planned_seconds": run.planned_seconds,
            "train_seconds": seconds,
            "rows_seconds": rows_seconds,
            "parameters_trained": trained,
            "failed": failed,
            "rows": rows,
        }
        publish(run.result, json.dumps(result, indent=1) + "\n")

    def write(self) -> dict[str, Any]:
        """Derive ``comparison.json`` from what is done so far."""
        teacher = json.loads((self.out / "teacher.json").read_text("utf-8"))
        sampler = self.bench.evaluation.sampler  # of the students; the teacher's is in its rows
        result = {
            "command": {"words": self.words, "budget": str(self.budget), "seeds": self.seeds, "jobs": self.jobs},
            "machine": {"processor": platform.machine(), "threads": self.threads, "cores": os.cpu_count()},
            "settings": chosen_settings(self.contenders),
            "judge": teacher["judge"],
            "sampling": teacher["sampling"]
            | {"sampler": sampler.name, "sampler_settings": sampler.model_dump(exclude={"name"})},
            "reference": teacher["reference"],
            "teacher_steps": self.bench.evaluation.teacher_steps,
            "teacher": teacher["rows"],
            "rows": comparison_rows([run.read_result() for run in self.runs if run.result.is_file()]),
        }
        publish(self.out / "comparison.json", json.dumps(result, indent=1) + "\n")
        return result


def start(words: list[str], log: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start a run that writes what it says into a file, and ends when this process does, however that ends."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), LAUNCHER: str(os.getpid())}
    with log.open("ab") as said:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)


def wait_until_free(folder: Path) -> None:
    """Wait for a process that still holds a run: the comparison that started it was killed, it saves and leaves.

    Raises:
        UserError: it does not.
    """
    path = folder / LOCK
    deadline = time.monotonic() + PATIENCE
    while path.is_file():
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = path.read_text("utf-8").strip() or "another process"
                    raise UserError(f"{folder} is in use by {holder}; stop it, then start again") from None
        time.sleep(LOOK)


def parameters_trained(checkpoint: Path) -> int:
    """How many weights the optimisers moved, of all networks together."""
    count = 0
    for file in checkpoint.glob("*/rank-*.safetensors"):
        with safe_open(file, "pt") as tensors:
            if file.parent.name != "target":
                shapes = [tensors.get_slice(k).get_shape() for k in tensors.keys() if k.startswith("weight/")]  # noqa: SIM118
                count += sum(int(torch.Size(shape).numel()) for shape in shapes)
    return count
