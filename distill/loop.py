"""The loop: next batch → rollout → for each phase: loss, backward, step → average; once in a while log, watch, save."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from distill.checkpoint import latest_checkpoint, load_checkpoint, mark_best, save_checkpoint
from distill.config import OptimizerConfig, TrainConfig
from distill.data import Corpus
from distill.engines import build_engine, full_parameters, gradient_norm, micro_batch
from distill.progress import progress_bar
from distill.run_folder import RunFolder
from distill.tracking import Tracker
from distill.world import World
from objectives.objective import Objective
from students.student import Ema
from teachers.randomness import RowStreams

Watch = Callable[[int, Ema, dict[str, Any]], tuple[dict[str, float], bool, str | None]]
"""(update, average, state kept across resumes) → (metrics, whether this is the best so far, why to stop or None)."""


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
) -> tuple[Ema, str | None]:
    """Run ``config.updates`` updates, or what is left of them.

    Args:
        optimizers: one a phase of the objective.
        corpus: real rows, or None for objectives that need none.
        length: tokens a row, for the throughput.
        watch: called every ``watch_every`` updates; may stop the run.

    Returns:
        The averaged student, and why the run stopped early (None when it did not).
    """
    micro = micro_batch(config, world)
    accumulation = config.batch // world.size // micro
    ema = Ema(objective.network("student"), config.ema)  # type: ignore[arg-type]
    engines = {
        phase: build_engine(objective.network(phase), optimizers[phase], config, deepspeed, world)
        for phase in objective.phases
    }
    done, watched, stopped = 0, {}, None
    checkpoint = latest_checkpoint(run) if resume else None
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, engines, ema)
        done, watched, stopped = state["update"], state["watched"], state["stopped"]
    if world.is_main:
        run.drop_metrics_after(done)
    rows = world.rows(config.batch)
    meter = Meter(world)
    saved_at = time.monotonic()

    with progress_bar() as bar, Tracker(run, world, config) as tracker:
        task = bar.add_task("training", total=config.updates, completed=done, note="")
        for update in range(done, config.updates):
            if stopped:
                break
            real = None
            if corpus is not None:
                real = corpus.batch(config.seed, [update * config.batch + row for row in rows]).to(world.device)
            rollout = objective.rollout(real, len(rows), RowStreams(config.seed, (update,), rows, world.device))
            for phase in objective.phases:
                engine = engines[phase]
                terms = world.sum(objective.count(phase, rollout)).clamp(min=1)
                for start in range(0, len(rows), micro):
                    out = objective.loss(phase, rollout.rows(slice(start, start + micro)))
                    # DeepSpeed averages over processes and micro-batches; the loss is a mean over all terms
                    engine.backward(out.sum * (world.size * accumulation / terms).to(out.sum))
                    meter.add(phase, out.sum.detach() / terms, out.metrics)
                    if start + micro >= len(rows):
                        meter.norm(phase, gradient_norm(engine))
                    engine.step()
            ema.update(full_parameters(engines["student"]))

            finished = update + 1
            meter.tokens += config.batch * length
            bar.update(task, completed=finished)
            if finished % config.log_every == 0 or finished == config.updates:
                rates = {f"{phase}/lr": engine.get_lr()[0] for phase, engine in engines.items()}
                line = {"update": finished, **meter.read(), **rates}
                tracker.log(line)
                bar.update(task, note=f"loss {line['student/loss']:.3f}")
            best = False
            if watch is not None and watch_every and (finished % watch_every == 0 or finished == config.updates):
                metrics, best, stopped = watch(finished, ema, watched)
                tracker.log({"update": finished, **metrics})
            late = config.checkpoint_minutes and time.monotonic() - saved_at > 60 * config.checkpoint_minutes
            last = finished == config.updates or stopped is not None
            if best or last or finished % config.checkpoint_every == 0 or world.broadcast(bool(late)):
                keep = {"watched": watched, "stopped": stopped}
                save_checkpoint(run, world, finished, engines, ema, keep, config.keep)
                saved_at = time.monotonic()
                if best and world.is_main:
                    mark_best(run, finished)
    for engine in engines.values():
        engine.destroy()
    return ema, stopped


class Meter:
    """Averages between two log lines: losses over updates, metrics over their own counts, rates over the clock."""

    def __init__(self, world: World):
        self.world = world
        self.start = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.since, self.tokens = time.monotonic(), 0
        self.losses, self.norms = defaultdict(float), defaultdict(list)
        self.sums, self.counts = defaultdict(float), defaultdict(float)

    def add(self, phase: str, loss: Any, metrics: dict[str, tuple[Any, Any]]) -> None:
        """Add a micro-batch's share of an update's loss, and its metrics."""
        self.losses[f"{phase}/loss"] = self.losses[f"{phase}/loss"] + loss
        for name, (total, count) in metrics.items():
            self.sums[f"{phase}/{name}"] = self.sums[f"{phase}/{name}"] + total
            self.counts[f"{phase}/{name}"] = self.counts[f"{phase}/{name}"] + count

    def norm(self, phase: str, value: float) -> None:
        """Add an update's gradient norm."""
        self.norms[f"{phase}/grad_norm"].append(value)

    def read(self) -> dict[str, float]:
        """The averages over all processes since the last call."""
        import torch

        updates = max(len(v) for v in self.norms.values())
        names = [*self.losses, *self.sums]
        values = [*self.losses.values(), *self.sums.values(), *self.counts.values()]
        total = self.world.sum(torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])).tolist()
        divide_by = [updates] * len(self.losses) + total[len(names) :]
        line = {name: value / max(n, 1e-12) for name, value, n in zip(names, total, divide_by, strict=False)}
        line |= {name: sum(v) / len(v) for name, v in self.norms.items()}
        seconds = time.monotonic() - self.since
        line |= {
            "seconds": round(time.monotonic() - self.start, 3),
            "updates_per_second": updates / seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / seconds,
        }
        self._reset()
        return line
