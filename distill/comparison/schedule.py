"""The runs of a comparison, a process each, and what has become of them.

The folder holds ``configs/`` (each as it is run), ``teacher.json``, ``calibration/`` where the budget is time, and
``runs/LABEL/seed-S/`` with its log and its result beside it; and, made of these, ``comparison.json``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from threading import Event

import torch
from rich.progress import Progress, TaskID

from distill.comparison.bench import SharedBench
from distill.comparison.budget import CALIBRATION, Budget, seconds_per_update, update_seconds
from distill.comparison.fairness import chosen_settings
from distill.comparison.kept import run_folder
from distill.comparison.results import Command, Comparison, Machine, RunResult, load_run_result
from distill.comparison.run import LOOK, Run, parameters_trained, start, wait_until_free, why_failed
from distill.config import DistillConfig, dump_config
from distill.data.kept_rows import writing_seconds
from distill.evaluation.results import Evaluation
from distill.runtime.checkpoints import verify_checkpoint
from distill.runtime.cost import Cost
from distill.runtime.exits import PREEMPTED
from distill.runtime.messages import say, warn
from distill.runtime.result_files import as_json, json_text, load_result
from distill.runtime.run_folder import RunFolder
from teachers.errors import UserError
from teachers.files import publish


@dataclass(frozen=True)
class Calibration:
    """How long an update of a config takes, or why nobody knows."""

    failed: str | None
    updates: int | None = None
    seconds_per_update: float | None = None


UNKNOWN = Calibration(None)
"""A budget of updates needs no calibration."""


class Schedule:
    """Whatever is still to be done, in this order: the teacher, the calibration, run after run."""

    def __init__(
        self,
        out: Path,
        command: Command,
        contenders: dict[str, DistillConfig],
        budget: Budget,
        bench: SharedBench,
        bar: Progress,
        terminated: Event,
    ):
        """Write the configs as they will be run.

        Args:
            terminated: when it is set, runs are asked to save, and this process leaves.
        """
        self.out, self.command, self.contenders, self.budget, self.bench = out, command, contenders, budget, bench
        self.bar, self.terminated = bar, terminated
        self.threads = max(1, torch.get_num_threads() // command.jobs)
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
        return run_folder(self.out, label, seed)

    def run(self) -> Comparison:
        """Do it all, and write ``comparison.json`` whenever there is more to be told."""
        self._measure_teacher()
        self._plan_runs(self.calibrate() if self.budget.minutes is not None else {})
        left = [run for run in self.runs if not run.result.is_file()]
        total = sum(run.updates for run in self.runs)
        task = self.bar.add_task("updates", total=total, completed=total - sum(r.updates for r in left), note="")
        for wave in self._waves(left):
            failures = self._train([run for run in wave if run.checkpoint is None], task)
            self.bar.stop()  # the evaluation has a bar of its own
            for run in wave:
                self._conclude(run, failures.get(run))
            self.bar.start()
            self._results().save(self.out)
        results = self._results()
        results.save(self.out)
        return results

    def _waves(self, runs: list[Run]) -> Iterator[list[Run]]:
        """Those that run at once."""
        jobs = self.command.jobs
        return (runs[first : first + jobs] for first in range(0, len(runs), jobs))

    @property
    def _teacher_file(self) -> Path:
        return self.out / "teacher.json"

    def _measure_teacher(self) -> None:
        if self._teacher_file.is_file():
            return
        say("measuring the teacher and real text")
        self.bar.stop()
        publish(self._teacher_file, json_text(self.bench.measure_teacher()))
        self.bar.start()

    def _plan_runs(self, calibration: dict[str, Calibration]) -> None:
        """List the runs: every label once, before any a second time, for a first table early."""
        for seed in range(self.command.seeds):
            for label in self.contenders:
                known = calibration.get(label, UNKNOWN)
                seconds = known.seconds_per_update
                updates = 0 if known.failed else self.budget.in_updates(seconds)
                planned = None if seconds is None else updates * seconds
                run = Run(label, self.config_file(label), self.run_folder(label, seed), (), updates, seed, planned)
                self.runs.append(run)
                if known.failed and not run.result.is_file():
                    self._conclude(run, f"calibration: {known.failed}")

    def calibrate(self) -> dict[str, Calibration]:
        """Measure each config's seconds per update in a run of `CALIBRATION` updates, where that has not been done.

        A learning-rate schedule depends on the number of updates, so a budget of time becomes one before the run.
        Runs keep the number when the machine's speed changes; their real seconds stand in the table.

        Returns:
            By label, as kept in ``calibration/LABEL.json``. One that failed is not kept: to try a run again is to
            calibrate it again.
        """
        measured: dict[str, Calibration] = {}
        left = []
        for label in self.contenders:
            run = self._calibration_run(label)
            if run.result.is_file():
                measured[label] = load_result(Calibration, run.result, "calibration; start the comparison again")
            elif all(self.run_folder(label, s).with_suffix(".json").is_file() for s in range(self.command.seeds)):
                measured[label] = Calibration("as its results say")
            else:
                left.append(run)
        task = self.bar.add_task("calibrating", total=len(left) * CALIBRATION, note="", visible=bool(left))
        for wave in self._waves(left):
            failures = self._train([run for run in wave if run.checkpoint is None], task)
            measured |= {run.label: _conclude_calibration(run, failures.get(run)) for run in wave}
        self.bar.remove_task(task)
        return measured

    def _calibration_run(self, label: str) -> Run:
        # rows that the teacher writes at the start take long, and how good they are does not change the speed
        few = (f"teacher_samples={self.contenders[label].train.batch}",)
        return Run(label, self.config_file(label), self.out / "calibration" / label, few, CALIBRATION, 0)

    def _train(self, wave: list[Run], task: TaskID) -> dict[Run, str]:
        """Run some at once to their ends; returns those that failed, and why."""
        spoken = {run: run.log.stat().st_size if run.log.is_file() else 0 for run in wave}
        before = next(t.completed for t in self.bar.tasks if t.id == task)
        children: dict[Run, Popen[bytes]] = {}
        try:
            for run in wave:
                wait_until_free(run.folder)
                if run.folder.exists() and not (run.folder / "config.yaml").is_file():
                    shutil.rmtree(run.folder)  # killed while it was being made; there is nothing in it
                children[run] = start(run.words(), run.log, self.threads)
            self._watch(children, task, before)
        finally:
            for child in children.values():
                if child.poll() is None:
                    child.terminate()
            codes = {run: child.wait() for run, child in children.items()}
        if self.terminated.is_set() or PREEMPTED in codes.values():
            say("terminated; start again with the same command to continue")
            raise SystemExit(PREEMPTED)
        self.bar.update(task, completed=before + sum(run.updates for run in wave))
        return {run: why_failed(code, _said(run, spoken[run])) for run, code in codes.items() if code}

    def _watch(self, children: dict[Run, Popen[bytes]], task: TaskID, before: float) -> None:
        """Show how far runs are until all have ended, or this process is to leave."""
        while any(child.poll() is None for child in children.values()):
            if self.terminated.wait(LOOK):
                return
            done = {run: run.done_updates() for run in children}
            note = "; ".join(f"{run.name}: {n} of {run.updates}" for run, n in done.items())
            self.bar.update(task, completed=before + sum(done.values()), note=note)

    def _conclude(self, run: Run, failed: str | None) -> None:
        """Measure a run that has ended, and write its result."""
        result = RunResult(
            label=run.label,
            objective=self.contenders[run.label].objective.name,
            seed=run.seed,
            updates=run.updates,
            planned_seconds=run.planned_seconds,
            train_seconds=sum(update_seconds(run.metrics())),
            rows_seconds=None,
            parameters_trained=None,
            failed=failed,
            rows=(),
            cost=Cost.load(run.folder),
        )
        if failed is None:
            result = self._measured(run, result)
        if result.failed is not None:
            warn(f"{run.name}: {result.failed}", "failed")
        publish(run.result, json_text(result))

    def _measured(self, run: Run, result: RunResult) -> RunResult:
        assert run.checkpoint is not None
        say(f"{run.name}: {run.updates} updates in {result.train_seconds:,.0f} seconds; measuring")
        try:
            verify_checkpoint(run.checkpoint)
            evaluation = self.bench.measure_student(run.checkpoint, self.contenders[run.label])
            return replace(
                result,
                parameters_trained=parameters_trained(run.checkpoint),
                rows_seconds=writing_seconds(RunFolder(run.folder)),
                rows=evaluation.rows,
                frontier=evaluation.frontier,
            )
        except (UserError, RuntimeError, ValueError) as error:  # all NaN, no memory, no critic for the sampler
            return replace(result, failed=f"evaluation: {' '.join(str(error).split())[:300]}")

    def _results(self) -> Comparison:
        """All that is known so far."""
        teacher = load_result(Evaluation, self._teacher_file, "evaluation; start the comparison again")
        sampler = self.bench.evaluation.sampler  # of the students; the teacher's is in its rows
        settings = sampler.model_dump(exclude={"name", "draw"})
        return Comparison(
            command=self.command,
            machine=Machine(platform.machine(), self.threads, os.cpu_count()),
            settings=chosen_settings(self.contenders),
            judge=teacher.judge,
            sampling=replace(teacher.sampling, sampler=sampler.name, sampler_settings=settings),
            reference=teacher.reference,
            teacher_steps=self.bench.evaluation.teacher_steps,
            teacher=teacher.rows,
            runs=tuple(load_run_result(run.result) for run in self.runs if run.result.is_file()),
            frontier=teacher.frontier,
        )


def _conclude_calibration(run: Run, failed: str | None) -> Calibration:
    """What a calibration run tells; its folder is of no more use."""
    calibration = Calibration(failed)
    if failed is None:
        seconds = seconds_per_update(run.metrics())
        calibration = Calibration(None, CALIBRATION, seconds)
        publish(run.result, json.dumps(as_json(calibration)) + "\n")
        say(f"{run.label}: {seconds:.3f} seconds an update")
    shutil.rmtree(run.folder, ignore_errors=True)
    return calibration


def _said(run: Run, since: int) -> str:
    """What a run's processes wrote into its log after so many bytes."""
    with run.log.open("rb") as file:
        file.seek(since)
        return file.read().decode("utf-8", "replace")
