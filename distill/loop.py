"""The loop: next batch → rollout → for each phase: loss, backward, step → average; once in a while log, watch, save."""

from __future__ import annotations

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch

from distill.checkpoint import Checkpointer, check_space, latest_checkpoint, load_checkpoint
from distill.config import OptimizerConfig, TrainConfig
from distill.data import Corpus
from distill.engines import Engine, micro_batch
from distill.progress import console, progress_bar
from distill.run_folder import RunFolder, append_line
from distill.tracking import Tracker
from distill.world import RunError, World
from objectives.objective import LossOutput, Objective
from students.student import Ema, twin
from teachers.denoiser import Denoiser
from teachers.errors import UserError
from teachers.randomness import RowStreams

Watch = Callable[[int, Denoiser | None, dict[str, Any]], tuple[dict[str, float], bool, str | None]]
"""(update, average on the main process, state kept across resumes) → (metrics, whether this is the best so far, why to
stop or None). Called on every process; the answer is the same on each."""


@dataclass
class Outcome:
    """How a training ended.

    Attributes:
        average: the averaged student, on the main process.
        stopped: why it ended early, if it did.
        preempted: a SIGTERM ended it, after a checkpoint; it can be resumed.
    """

    average: Denoiser | None
    stopped: str | None
    preempted: bool


def train(
    objective: Objective,
    optimizers: dict[str, OptimizerConfig],
    corpus: Corpus | None,
    config: TrainConfig,
    deepspeed: dict[str, Any],
    run: RunFolder,
    world: World,
    length: int,
    resume: bool = False,
    watch: Watch | None = None,
    watch_every: int | None = None,
    data: dict[str, Any] | None = None,
) -> Outcome:
    """Run ``config.updates`` updates, or what is left of them.

    Args:
        optimizers: one a phase of the objective.
        corpus: real rows, or None for objectives that need none.
        length: tokens a row, for the throughput.
        watch: called every ``watch_every`` updates; may stop the run.
        data: identity of the corpus, to refuse a run that continues on other data; None accepts any.

    Raises:
        UserError: the checkpoint is damaged or of other data, or there is no room for one.
        RunError: too many updates in a row were not finite, or the last checkpoint could not be written.
    """
    micro = micro_batch(config, world)
    # kept on the CPU, but for when it is watched: a large one need not fit beside what trains
    average = twin(objective.network("student")).cpu() if world.is_main else None  # type: ignore[arg-type]
    engines = {
        phase: Engine(objective.network(phase), optimizers[phase], config, deepspeed, world)
        for phase in objective.phases
    }
    ema = Ema(engines["student"].masters(), config.ema)
    kept: dict[str, Any] = {"watched": {}, "stopped": None, "skipped": 0, "data": data}
    done = 0
    checkpoint = latest_checkpoint(run) if resume else None
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, engines, ema)
        if data is not None and state["data"] not in (None, data):
            raise UserError(
                f"the data is {data} but this run was trained on {state['data']}; put the data back, start a new run, "
                "or allow it with --allow-changes"
            )
        done, kept = state["update"], {key: state[key] for key in kept} | {"data": data}
    if world.is_main:
        run.drop_metrics_after(done)
    world.on_main(lambda: check_space(run, engines, config.keep))
    checkpointer = Checkpointer(run, world, config.keep)
    rows = world.rows(config.batch)
    meter, guard = Meter(world), Guard(run, world, config)
    saved_at = time.monotonic()

    def settle() -> str | None:
        problem = checkpointer.settle() if checkpointer.open else None
        if problem and world.is_main:
            console.print(f"[yellow]warning:[/yellow] {problem}; those before it are intact", highlight=False)
        return problem

    def fill_average() -> None:
        settle()  # it may still be being written
        with ema.swapped(), torch.no_grad():
            into = dict(average.named_parameters()) if average is not None else {}
            for name, weight in engines["student"].gather("weight"):
                if into:
                    into[name].copy_(weight)

    with termination() as terminated, progress_bar() as bar, Tracker(run, world, config) as tracker:
        task = bar.add_task("training", total=config.updates, completed=done, note="")
        preempted = False
        for update in range(done, config.updates):
            if kept["stopped"] or preempted:
                break
            real = None
            if corpus is not None:
                real = corpus.batch(config.seed, [update * config.batch + row for row in rows]).to(world.device)
            rollout = objective.rollout(real, len(rows), RowStreams(config.seed, (update,), rows, world.device))
            moved = {}
            for phase in objective.phases:
                engine = engines[phase]
                terms = world.sum(objective.count(phase, rollout)).clamp(min=1)
                outs, loss = [], torch.zeros((), dtype=torch.float64, device=world.device)
                for start in range(0, len(rows), micro):
                    out = objective.loss(phase, rollout.rows(slice(start, start + micro)))
                    # DeepSpeed averages over processes and micro-batches; the loss is a mean over all terms
                    engine.backward(out.sum * (world.size * len(rows) // micro / terms).to(out.sum))
                    outs.append(out)
                    loss += out.sum.detach() / terms
                    if start + micro < len(rows):
                        engine.step(update)
                loss = float(world.sum(loss))
                norm, moved[phase] = engine.step(update, math.isfinite(loss))
                if moved[phase]:
                    meter.add(phase, loss, norm, outs)
                else:
                    kept["skipped"] += 1
                    guard.record(update, phase, loss, norm)
            if moved["student"]:
                ema.update()
            guard.check(all(moved.values()), settle)

            finished = update + 1
            meter.tokens += config.batch * length
            bar.update(task, completed=finished)
            last = finished == config.updates
            if finished % config.log_every == 0 or last:
                rates = {f"{phase}/lr": engine.learning_rate(update) for phase, engine in engines.items()}
                line = {"update": finished, **meter.read(), **rates, "skipped": kept["skipped"]}
                tracker.log(line)
                bar.update(task, note=f"loss {line['student/loss']:.3f}" if "student/loss" in line else "skipped")
            best = False
            if watch is not None and watch_every and (finished % watch_every == 0 or last):
                fill_average()
                if average is not None:
                    average.to(world.device)
                metrics, best, kept["stopped"] = watch(finished, average, kept["watched"])
                if average is not None:
                    average.cpu()
                tracker.log({"update": finished, **metrics})
            late = (
                config.checkpoint_minutes is not None and time.monotonic() - saved_at > 60 * config.checkpoint_minutes
            )
            preempted, writing, late = world.any(terminated.is_set(), checkpointer.writing, late)
            if not writing:
                settle()
            last = last or preempted or kept["stopped"] is not None
            if best or last or late or finished % config.checkpoint_every == 0:
                fill_average()
                checkpointer.begin(finished, engines, ema, average, kept, best)
                saved_at = time.monotonic()
        problem = settle()
    if problem:
        raise RunError(f"{problem}; make room or mend the folder, then start again with --resume")
    for engine in engines.values():
        engine.destroy()
    return Outcome(average, kept["stopped"], preempted)


@contextmanager
def termination() -> Iterator[Event]:
    """An event that the first SIGTERM sets, so that a preempted run saves before it goes; a second one kills.

    Within five seconds it is the same one: schedulers signal all processes of a job, and launchers pass theirs on.
    """
    event, first = Event(), 0.0

    def on_sigterm(number: int, frame: object) -> None:
        nonlocal first
        if not event.is_set():
            event.set()
            first = time.monotonic()
        elif time.monotonic() - first > 5:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class Guard:
    """Records updates whose loss or gradient was not finite, and ends the run when there are too many in a row."""

    def __init__(self, run: RunFolder, world: World, config: TrainConfig):
        self.run, self.world, self.config, self.in_a_row, self.last = run, world, config, 0, ""

    def record(self, update: int, phase: str, loss: float, norm: float) -> None:
        """Write down what it takes to make the batch again: rows and rollouts follow from seed, update and row."""
        first = update * self.config.batch
        self.last = f"update {update + 1}: {phase} loss {loss:.4g}, gradient norm {norm:.4g}"
        if self.world.is_main:
            console.print(f"[yellow]warning:[/yellow] step skipped at {self.last}", highlight=False)
            append_line(
                self.run.skipped,
                {
                    "update": update + 1,
                    "phase": phase,
                    "loss": str(loss),
                    "grad_norm": str(norm),
                    "seed": self.config.seed,
                    "corpus_rows": [first, first + self.config.batch],
                },
            )

    def check(self, moved: bool, before_leaving: Callable[[], object]) -> None:
        """Count updates in a row that did not move everything.

        Raises:
            RunError: there were ``train.max_skipped``.
        """
        self.in_a_row = 0 if moved else self.in_a_row + 1
        if self.in_a_row >= self.config.max_skipped:
            before_leaving()
            raise RunError(
                f"{self.in_a_row} updates in a row were not finite ({self.last}); their batches are named in "
                f"{self.run.skipped}, the checkpoints are intact; lower train.student.lr or train.critic.lr, or use "
                "float32, and start again with --resume --allow-changes"
            )


class Meter:
    """Averages between two log lines: losses over updates, metrics over their own counts, rates over the clock."""

    def __init__(self, world: World):
        self.world = world
        self.start = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.since, self.tokens = time.monotonic(), 0
        self.values = defaultdict(list)
        self.sums, self.counts = defaultdict(float), defaultdict(float)

    def add(self, phase: str, loss: float, norm: float, outs: list[LossOutput]) -> None:
        """Add an update's loss and gradient norm, and this process's metrics."""
        self.values[f"{phase}/loss"].append(loss)
        self.values[f"{phase}/grad_norm"].append(norm)
        for out in outs:
            for name, (total, count) in out.metrics.items():
                self.sums[f"{phase}/{name}"] = self.sums[f"{phase}/{name}"] + total
                self.counts[f"{phase}/{name}"] = self.counts[f"{phase}/{name}"] + count

    def read(self) -> dict[str, float]:
        """The averages over all processes since the last call."""
        line = {name: sum(values) / len(values) for name, values in self.values.items()}
        values = [*self.sums.values(), *self.counts.values()]
        if values:
            total = self.world.sum(torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])).tolist()
            counts = total[len(self.sums) :]
            line |= {name: value / max(n, 1e-12) for name, value, n in zip(self.sums, total, counts, strict=False)}
        updates = max((len(v) for v in self.values.values()), default=0)
        seconds = time.monotonic() - self.since
        line |= {
            "seconds": round(time.monotonic() - self.start, 3),
            "updates_per_second": updates / seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / seconds,
        }
        self._reset()
        return line
