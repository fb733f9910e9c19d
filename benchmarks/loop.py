"""How much of a training update is not the networks' own work, and what a second process brings.

    python benchmarks/loop.py [--config configs/quickstart.yaml] [--updates 24] [--only overhead|scaling] [key=value …]

**Overhead**: in one process, one thread, the real loop trains; before each of its updates, the same passes (rollout,
forward and backward of each phase) run bare, on networks of their own: no engine, no optimiser, no average, no log.
Overhead is (loop − bare) / bare, and the exit code is 1 above 10%. One checkpoint falls into the measured updates.

**Scaling**: the real command on one core, on two cores, and as two processes with a core each, in turns.

Everything is a ratio of things measured in turns in one run. Other work on the machine slows both sides of the overhead
alike; scaling needs a machine that is otherwise idle, because among other work two processes get two shares of it. The
load when it starts is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.stopwatch import Stopwatch
from distill.commands.distil import distil
from distill.config import DistillConfig, dump_config, load_config
from distill.config.deepspeed import deepspeed_section
from distill.config.precision import settled
from distill.data.teacher_rows import training_rows
from distill.models import load_student, load_teacher
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import start_world
from distill.training.checkpoint import Checkpointer
from distill.training.loop import train
from distill.training.meter import Meter
from distill.training.placement import place_teacher
from distill.training.plain import PlainEngine
from distill.training.tracking import Tracker
from distill.training.zero import ZeroEngine
from objectives.objective import Distillation, LossOutput, Objective, Rollout
from students.student import Ema, cast, trainable_copy
from teachers.canvas import Batch, Canvas
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams

ROOT = Path(__file__).parents[1]
BOUND = 0.10  # of overhead
WARM_UP = 2  # updates that are not counted
console = Console()


def bare_update(objective: Objective, batch: Batch, streams: RowStreams, watch: Stopwatch) -> None:
    """The networks' passes of one update and nothing else."""
    with watch.part("rollout"):
        rollout = objective.rollout(batch, streams)
    for phase in objective.phases:
        with watch.part(f"{phase} forward"):
            out = objective.loss(phase, rollout)
        with watch.part(f"{phase} backward"):
            (out.sum / len(batch)).backward()
        objective.networks[phase].zero_grad()


class Interleaved(Objective):
    """An objective that times itself and, before each of its updates, the same update bare."""

    def __init__(self, inner: Objective, bare: Objective, config: DistillConfig):
        self.inner, self.bare, self.config = inner, bare, config
        self.student, self.phases, self.group = inner.student, inner.phases, inner.group
        self.loop_watch, self.bare_watch = Stopwatch(), Stopwatch()
        self.phase, self.update, self.since = "", 0, 0.0

    @property
    def networks(self) -> dict[str, nn.Module]:
        return self.inner.networks

    def outline(self, canvas: Canvas) -> Rollout:
        return self.inner.outline(canvas)

    def rollout(self, batch: Batch, randomness: RowStreams) -> Rollout:
        if self.update:
            self.loop_watch.parts["total"] = time.perf_counter() - self.since
            self.loop_watch.close()
        streams = RowStreams(self.config.train.seed, (self.update,), range(len(batch)))  # as the loop
        with self.bare_watch.part("total"):
            bare_update(self.bare, batch, streams, self.bare_watch)
        self.bare_watch.close()
        self.update += 1
        self.since = time.perf_counter()
        with self.loop_watch.part("rollout"):
            return self.inner.rollout(batch, randomness)

    def count(self, phase: str, rollout: Rollout) -> Tensor:
        self.phase = phase
        return self.inner.count(phase, rollout)

    def loss(self, phase: str, rollout: Rollout) -> LossOutput:
        with self.loop_watch.part(f"{phase} forward"):
            return self.inner.loss(phase, rollout)


def measure_overhead(config: DistillConfig, updates: int, folder: Path) -> bool:
    """Print where the loop's time goes; returns whether the overhead is above its bound."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    world = start_world()
    run = RunFolder(folder / "overhead")
    run.create(dump_config(config))
    teacher, tokenizer = load_teacher(config.teacher)
    student, length = load_student(config, teacher, tokenizer), config.sequence_length
    first, second = (
        config.objective.build(Distillation(teacher, network, MaskedProcess(config.teacher.process), length, teacher))
        for network in (student, trainable_copy(student))
    )
    corpus = training_rows(first, config, teacher, None, run, world)
    place_teacher(teacher, config.teacher, config.train, world, run.path / "offload")
    objective = Interleaved(first, second, config)
    if config.train.precision == "bfloat16":
        for phase in objective.phases:
            cast(objective.bare.networks[phase], torch.bfloat16)
    watch = objective.loop_watch
    deepspeed = deepspeed_section(config.deepspeed, world.size)
    engine = PlainEngine if deepspeed is None else ZeroEngine
    watch.wrap(engine, "backward", lambda: f"{objective.phase} backward")
    watch.wrap(engine, "step", lambda: f"{objective.phase} optimiser step")
    watch.wrap(Ema, "update", lambda: "average")
    watch.wrap(Meter, "read", lambda: "logging")
    watch.wrap(Tracker, "log", lambda: "logging")
    watch.wrap(Checkpointer, "begin", lambda: "checkpoint snapshot")
    assert config.train.critic is not None
    optimizers = {"critic": config.train.critic, "student": config.train.student}
    train(objective, optimizers, corpus, config.train, deepspeed, run, world, length)
    world.finish()

    loop, bare = watch.milliseconds(WARM_UP), objective.bare_watch.milliseconds(WARM_UP)
    loop["everything else"] = loop["total"] - sum(v for k, v in loop.items() if k != "total")
    bare["everything else"] = bare["total"] - sum(v for k, v in bare.items() if k != "total")
    table = Table(title=f"one update, {updates} measured: batch {config.train.batch}, {length} tokens")
    for column in ("part", "bare ms", "loop ms", "share of loop"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name in [*(k for k in loop if k != "total"), "total"]:
        shown = f"{bare[name]:.1f}" if name in bare else "–"
        table.add_row(name, shown, f"{loop[name]:.1f}", f"{loop[name] / loop['total']:.1%}")
    console.print(table)
    # update by update, so that a burst of other work on one side does not decide
    pairs = zip(watch.updates[WARM_UP:], objective.bare_watch.updates[WARM_UP:-1], strict=True)
    median = statistics.median(a["total"] / b["total"] for a, b in pairs) - 1
    outside = 1 - sum(v for k, v in loop.items() if k == "rollout" or k.endswith("ward")) / loop["total"]
    overhead = loop["total"] / bare["total"] - 1
    console.print(
        f"overhead over the bare passes {overhead:.1%} (median of updates {median:.1%}), at most {BOUND:.0%}; "
        f"outside the passes {outside:.1%} of the loop"
    )
    return overhead > BOUND


def measure_scaling(config: Path, overrides: list[str], updates: int, rounds: int, folder: Path) -> None:
    """Print updates a second of one core, two cores and two processes of a core each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    ways = {
        "1 process, 1 core": (1, [cores[:1]]),
        "1 process, 2 cores": (1, [cores]),
        "2 processes, 1 core each": (2, [[core] for core in cores]),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    load = os.getloadavg()[0]
    for number in range(rounds):
        for i, (way, (processes, bound)) in enumerate(ways.items()):
            run = folder / f"scaling-{number}-{i}"
            command = [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
                __file__, "--config", str(config), "--worker", ":".join(",".join(map(str, b)) for b in bound),
                "--folder", str(run), f"train.updates={updates + WARM_UP}", "train.log_every=1",
                "evaluate.every=null", "train.checkpoint_every=1000000", *overrides,
            ]  # fmt: skip
            environment = os.environ | {"OMP_NUM_THREADS": str(len(bound[0]))}
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            lines = RunFolder.open(run).read_metrics()
            seconds = lines[-1]["seconds"] - lines[WARM_UP - 1]["seconds"]
            rates[way].append((len(lines) - WARM_UP) / seconds)
    table = Table(title=f"{rounds} rounds of {updates} updates; load average at the start {load:.1f}")
    for column in ("way", "updates/s", "ratio", "each round"):
        table.add_column(column, justify="left" if column == "way" else "right")
    first = statistics.mean(next(iter(rates.values())))
    for way, values in rates.items():
        mean = statistics.mean(values)
        table.add_row(way, f"{mean:.3f}", f"{mean / first:.2f}", "  ".join(f"{v:.3f}" for v in values))
    console.print(table)


def worker(config: Path, overrides: list[str], cores: str, run: Path) -> None:
    """One process of the scaling runs: bound to its cores, then the real command."""
    own = [int(core) for core in cores.split(":")[int(os.environ["LOCAL_RANK"])].split(",")]
    os.sched_setaffinity(0, own)
    torch.set_num_threads(len(own))
    distil(load_config(DistillConfig, config, overrides), run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.yaml")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2, help="of scaling")
    parser.add_argument("--only", choices=("overhead", "scaling"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    if arguments.worker:
        return worker(arguments.config, arguments.overrides, arguments.worker, arguments.folder)
    too_much = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.only != "overhead":
            measure_scaling(arguments.config, arguments.overrides, arguments.updates // 2, arguments.rounds, folder)
        if arguments.only != "scaling":
            # the last update of a run always saves and is not measured; of the others, one does
            own = [
                f"train.updates={arguments.updates + WARM_UP + 1}",
                f"train.checkpoint_every={arguments.updates // 2 + WARM_UP + 1}",
                "evaluate.every=null",
            ]
            config = settled(load_config(DistillConfig, arguments.config, [*arguments.overrides, *own]))
            too_much = measure_overhead(config, arguments.updates, folder)
    sys.exit(int(too_much))


if __name__ == "__main__":
    main()
