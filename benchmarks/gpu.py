"""Everything that only a GPU can tell, in one go of six minutes and imports: is it right, how fast, where time goes.

    python -m benchmarks.gpu --out runs/gpu                            # on one H100 or H200
    python -m benchmarks.gpu --out runs/toy --device cpu --size toy    # its rehearsal, in about two minutes
    python -m benchmarks.gpu --out runs/gpu --only memory              # one section; a word of its name will do

Each section is a process of its own, with seconds of its own. What it measures is in OUT/gpu.json as soon as it is
measured, and its words are in OUT/gpu.log, so nothing is lost when the machine goes. A section that fails or runs
out of time is said to have, and the next one begins.

The seconds of the first sections add up to the six minutes, so each of them has its own for certain: correctness,
updates of both networks, latency, and whole runs with a kill and a resume. The others, among them compiled passes and
sampling in blocks, share what these leave, in their order. Those that are not reached are named at the end. The same
command goes on with them: what is done is not measured twice where OUT is there again.

In the end the figures are a table, on the terminal and in OUT/gpu.md; profiles lie beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# a fork of a process that has asked the driver for its devices could not use them; this asks elsewhere
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.on_gpu import blocks, compiled, correctness, fused, latency, memory, training, updates
from benchmarks.on_gpu.setting import SETTINGS, Figures, Job, Section
from teachers.files import publish

FORKS = get_context("forkserver")  # of a process that has neither memory nor a GPU's state
RESULTS, TABLE, LOG = "gpu.json", "gpu.md", "gpu.log"
SECONDS = 360
"""Of all sections together, unless told otherwise."""


@dataclass(frozen=True)
class Planned:
    """A section, and how many of `SECONDS` it may take at most; it need not take them all."""

    name: str
    section: Section
    seconds: float


def first_sections(size: str) -> list[Planned]:
    """What a card is asked for most; their seconds are no more than `SECONDS`, so none takes another's."""
    smaller, larger = SETTINGS[size].updates
    return [
        Planned("correctness", correctness.correctness, 50),
        Planned(f"updates, {smaller}", partial(updates.updates, smaller), 65),
        Planned(f"updates, {larger}", partial(updates.updates, larger), 95),
        Planned("latency", latency.latency, 35),
        Planned("training", training.training, 115),
    ]


def other_sections(size: str) -> list[Planned]:
    """What is measured in the time that is left, the last of them on any machine."""
    smaller, larger = SETTINGS[size].updates
    return [
        Planned("blocks", blocks.blocks, 90),
        Planned(f"compiled, {smaller}", partial(compiled.compiled, smaller), 90),
        Planned("fused heads", fused.fused, 30),
        Planned(f"compiled, {larger}", partial(compiled.compiled, larger), 120),
        Planned("memory", memory.memory, 300),
    ]


def sections(size: str) -> list[Planned]:
    """All, in their order."""
    return [*first_sections(size), *other_sections(size)]


class Results:
    """What is measured so far, in a file: section → state, seconds, error and parts.

    Attributes:
        sections: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.sections: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def of(self, name: str) -> dict[str, Any]:
        """A section's entry."""
        return self.sections.setdefault(name, {"state": "cut", "seconds": 0.0, "error": None, "parts": {}})

    def add(self, name: str, **changes: Any) -> None:
        """Change a section's entry, and write all down."""
        self.of(name).update(changes)
        publish(self.path, json.dumps(self.sections, indent=1) + "\n")

    def parts(self) -> dict[str, dict[str, Figures]]:
        """Section → part → figures."""
        return {name: entry["parts"] for name, entry in self.sections.items()}


def run_section(planned: Planned, job: Job, log: Path, path: Path) -> None:
    """What a section's process does: measure part after part, each written down at once."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    print(f"--- {planned.name}", flush=True)
    results = Results(path)
    error, code = None, 0
    try:
        for part, figures in planned.section(job):
            results.add(planned.name, parts={**results.of(planned.name)["parts"], part: figures})
    except BaseException as failure:  # whatever it is, the other sections must go on
        traceback.print_exc()
        error, code = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}", 1
    results.add(planned.name, state="failed" if error else "done", error=error)
    sys.stderr.flush()
    os._exit(code)


def measure(planned: Planned, job: Job, path: Path, seconds: float) -> None:
    """Run a section in its process, and end that when its time is over."""
    start = time.monotonic()
    process = FORKS.Process(target=run_section, args=(planned, job, job.out / LOG, path))
    process.start()
    process.join(seconds)
    late = process.exitcode is None
    if late:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    results = Results(path)
    results.add(planned.name, seconds=round(time.monotonic() - start, 1))
    if late or (process.exitcode and results.of(planned.name)["state"] == "cut"):
        state = "out of time" if late else "failed"
        results.add(planned.name, state=state, error=f"ended with exit code {process.exitcode}")


def table(found: dict[str, dict[str, Any]]) -> str:
    """All figures, as Markdown."""
    lines = ["| section | part | figure | value |", "| --- | --- | --- | ---: |"]
    for name, entry in found.items():
        outcome = entry["state"] if entry["error"] is None else f"{entry['state']}: {entry['error']}"
        lines.append(f"| **{name}** | | {outcome} | {entry['seconds']} s |")
        for part, figures in entry["parts"].items():
            for number, (figure, value) in enumerate(figures.items()):
                lines.append(f"| {name if not number else ''} | {'' if number else part} | {figure} | {shown(value)} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure as people read it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Measure what is not measured yet, print all, and give it back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where results and profiles are kept")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is one")
    parser.add_argument("--size", choices=SETTINGS, default="full")
    parser.add_argument("--only", nargs="+", help="words of names of sections; these are measured again")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all sections together")
    wanted = parser.parse_args(arguments)
    device = torch.device(wanted.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    wanted.out.mkdir(parents=True, exist_ok=True)
    first = FORKS.Process(target=int)  # what sections import is read before the clock starts
    first.start()
    first.join()
    path, deadline = wanted.out / RESULTS, time.monotonic() + wanted.seconds
    for planned in sections(wanted.size):
        results = Results(path)
        entry, asked = results.of(planned.name), wanted.only is None or any(w in planned.name for w in wanted.only)
        left = min(deadline - time.monotonic(), planned.seconds * wanted.seconds / SECONDS)
        if not asked or (wanted.only is None and entry["state"] == "done") or left <= 0:
            continue
        print(f"{planned.name}: at most {left:.0f} s", flush=True)
        have = frozenset(entry["parts"]) if wanted.only is None else frozenset()
        job = Job(SETTINGS[wanted.size], device, wanted.out, have, results.parts())
        measure(planned, job, path, left)
    found = Results(path).sections
    publish(wanted.out / TABLE, table(found))
    Console().print(Markdown(table(found)))
    left_out = [planned.name for planned in sections(wanted.size) if planned.name not in found]
    if left_out:
        print(f"not measured: {'; '.join(left_out)}; the same command measures them", flush=True)
    return found


if __name__ == "__main__":
    parts = (blocks, compiled, correctness, fused, latency, memory, training, updates)
    FORKS.set_forkserver_preload([part.__name__ for part in parts])
    main()
