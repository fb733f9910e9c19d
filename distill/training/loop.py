"""The loop: next batch → rollout → for each phase: loss, backward, step → average; once in a while log, watch, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from distill.config import OptimizerConfig, TrainConfig
from distill.data.corpus import Corpus, TrajectoryCorpus
from distill.runtime.exits import RunError
from distill.runtime.progress import progress_bar
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from distill.training.checkpoint import Checkpointer, check_space, latest_checkpoint, load_checkpoint
from distill.training.engine import Engine, micro_batch
from distill.training.engines import start_engine
from distill.training.guards import Guard, termination
from distill.training.meter import Meter
from distill.training.tracking import Tracker
from objectives.objective import LossOutput, Objective, Rollout
from students.student import Ema, cast, twin
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
    corpus: Corpus | TrajectoryCorpus | None,
    config: TrainConfig,
    deepspeed: dict[str, Any] | None,
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
        corpus: real rows or trajectories, or None for objectives that need none.
        deepspeed: what DeepSpeed is told, or None where torch alone trains, see `deepspeed_section`.
        length: tokens a row, for the throughput.
        watch: called every ``watch_every`` updates; may stop the run.
        data: identity of the corpus, to refuse a run that continues on other data; None accepts any.

    Raises:
        UserError: the checkpoint is damaged or of other data, or there is no room for one.
        RunError: too many updates in a row were not finite, or the last checkpoint could not be written.
    """
    micro = micro_batch(config, world, objective.group)
    # kept on the CPU, but for when it is watched: a large one need not fit beside what trains
    average = twin(objective.network("student")).cpu() if world.is_main else None  # type: ignore[arg-type]
    engines = {
        phase: start_engine(objective.network(phase), optimizers[phase], config, deepspeed, world)
        for phase in objective.phases
    }
    ema = Ema(engines["student"].masters(), config.ema)
    target = objective.target
    if target is not None:
        cast(target, getattr(torch, config.precision)).to(world.device)
    kept: dict[str, Any] = {"watched": {}, "stopped": None, "skipped": 0, "data": data}
    done = 0
    checkpoint = latest_checkpoint(run) if resume else None
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, engines, ema, world, target)
        if data is not None and state.get("data") not in (None, data):
            raise UserError(
                f"the data is {data} but this run was trained on {state['data']}; put the data back, start a new run, "
                "or allow it with --allow-changes"
            )
        done, kept = state["update"], {key: state.get(key, start) for key, start in kept.items()} | {"data": data}
        fill(average, ema, engines["student"])  # there may be no update left
    if world.is_main:
        run.drop_metrics_after(done)
    world.on_main(lambda: check_space(run, engines, config.keep, target))
    checkpointer = Checkpointer(run, world, config.keep)
    rows, meter, guard = world.rows(config.batch), Meter(world), Guard(run, world, config)
    saved_at = time.monotonic()

    with termination() as terminated, progress_bar() as bar, Tracker(run, world, config) as tracker:
        task = bar.add_task("training", total=config.updates, completed=done, note="")
        preempted = False
        for update in range(done, config.updates):
            if kept["stopped"] or preempted:
                break
            real = None
            if corpus is not None:
                real = corpus.batch(config.seed, [update * config.batch + row for row in rows]).to(world.device)
            if objective.begin(update, config.updates):
                fill(target, ema, engines["student"])
            rollout = objective.rollout(real, len(rows), RowStreams(config.seed, (update,), rows, world.device))
            all_moved = True
            for phase in objective.phases:
                loss, norm, moved, outs = take_step(engines[phase], objective, phase, rollout, update, micro, world)
                if moved:
                    meter.add(phase, loss, norm, outs)
                else:
                    guard.record(update, phase, loss, norm)
                    kept["skipped"] += 1
                all_moved = all_moved and moved
                if moved and phase == "student":
                    ema.update()
            if not guard.goes_on(all_moved):
                checkpointer.settle()
                guard.stop()

            finished = update + 1
            last = finished == config.updates
            meter.tokens += config.batch * length
            bar.update(task, completed=finished)
            if finished % config.log_every == 0 or last:
                rates = {f"{phase}/lr": engine.learning_rate(update) for phase, engine in engines.items()}
                line = {"update": finished, **meter.read(), **rates, "skipped": kept["skipped"]}
                tracker.log(line)
                bar.update(task, note=f"loss {line['student/loss']:.3f}" if "student/loss" in line else "skipped")
            best = filled = False
            if watch is not None and watch_every and (finished % watch_every == 0 or last):
                checkpointer.settle()  # it may still be writing the average
                fill(average, ema, engines["student"])
                filled = True
                with on_device(average, world.device):
                    metrics, best, kept["stopped"] = watch(finished, average, kept["watched"])
                tracker.log({"update": finished, **metrics})
            minutes = (time.monotonic() - saved_at) / 60
            late = config.checkpoint_minutes is not None and minutes > config.checkpoint_minutes
            preempted, writing, late = world.any(terminated.is_set(), checkpointer.writing, late)
            if not writing:
                checkpointer.settle()
            if best or last or late or preempted or kept["stopped"] or finished % config.checkpoint_every == 0:
                checkpointer.settle()
                if not filled:
                    fill(average, ema, engines["student"])
                checkpointer.begin(finished, engines, ema, average, target, kept, best)
                saved_at = time.monotonic()
        problem = checkpointer.settle()
    if problem:
        raise RunError(f"{problem}; make room or mend the folder, then start again with --resume")
    for engine in engines.values():
        engine.destroy()
    return Outcome(average, kept["stopped"], preempted)


def take_step(
    engine: Engine, objective: Objective, phase: str, rollout: Rollout, update: int, micro: int, world: World
) -> tuple[float, float, bool, list[LossOutput]]:
    """One phase of an update: forward and backward passes of ``micro`` rows at a time, then the optimiser's step.

    Returns:
        The loss over all processes, the gradient's norm, whether the weights moved, and what each micro-batch gave.
    """
    outs, rows = [], len(rollout)
    loss = torch.zeros((), dtype=torch.float64, device=world.device)
    terms = world.sum(objective.count(phase, rollout)).clamp(min=1)
    for start in range(0, rows, micro):
        out = objective.loss(phase, rollout.rows(slice(start, start + micro)))
        # engines average over processes and micro-batches; the loss is a mean over all terms
        engine.backward(out.sum * (world.size * (rows // micro) / terms).to(out.sum))
        outs.append(LossOutput(out.sum.detach(), out.metrics))
        loss += outs[-1].sum / terms
    value = float(world.sum(loss))
    norm, moved = engine.step(update, math.isfinite(value))
    return value, norm, moved, outs


@torch.no_grad()
def fill(average: Denoiser | None, ema: Ema, student: Engine) -> None:
    """Put the averaged weights into ``average``, cast; all processes together, those without one as well."""
    into = dict(average.named_parameters()) if average is not None else {}
    with ema.swapped():
        for name, weight in student.gather("weight"):
            if into:
                into[name].copy_(weight)


@contextmanager
def on_device(denoiser: Denoiser | None, device: torch.device) -> Iterator[None]:
    """A denoiser that is kept on the CPU, elsewhere for a while."""
    if denoiser is not None:
        denoiser.to(device)
    yield
    if denoiser is not None:
        denoiser.cpu()
