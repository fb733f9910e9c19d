"""What a training update costs, and how that grows with length, batch and vocabulary; beside a plain loop and before.

    python -m benchmarks.growth --before ../before --json docs/growth.json --minutes 9   # as often as cells are left
    python -m benchmarks.growth --cells 50258:128:4 --methods sdtt
    python -m benchmarks.growth --print docs/growth.json

Three programs make updates in turns, each in a process of its own: this checkout; another one (``--before``); and
**plain**, the mathematics of the methods as their authors' code writes it (`benchmarks.plain`). This checkout draws the
random numbers of the other one, so that both make the same updates, and their losses and gradients can be compared.
Time is what a process computed on one thread. Memory is the peak of a process above what its imports took: weights,
gradients and Adam's moments, and what an update adds.

A cell that the file has already is not measured again, so the command can be ended at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.update_worker import Answer, Cell

ROOT = Path(__file__).parents[1]
METHODS = "pretrain", "sdtt", "integral_kl", "didi_instruct"
AXES = {
    "length": ["1024:64:8", "1024:128:8", "1024:256:8", "1024:512:8"],
    "batch": ["1024:128:4", "1024:128:8", "1024:128:16"],
    "vocabulary": ["1024:128:4", "8192:128:4", "50258:128:4"],
    "length, large V": ["50258:128:4", "50258:256:4", "50258:512:4"],
    "batch, large V": ["50258:128:4", "50258:128:8"],
}
"""Cells along which one size grows, by V:L:B; DiDi-Instruct needs groups of four rows."""
ROUNDS = 4
"""In as many updates the plain loop makes as many passes as on average (`benchmarks.plain.MOVES`)."""
Line = dict[str, Any]


class Worker:
    """A program in processes of its own."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("update_worker.py")), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def updates(self, number: int) -> Answer:
        """Make some of the cell that it was told."""
        self.tell(str(number))
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the program {self.name!r} failed")
        return Answer(**json.loads(line))


def measured(method: str, cell: Cell, workers: Mapping[str, Worker]) -> Line:
    """One line of the result: of each program the milliseconds of each round, and its peak."""
    for worker in workers.values():
        worker.tell(f"{method} {cell}")
    first = {name: worker.updates(1) for name, worker in workers.items()}  # memory and caches are then as they stay
    # about a second each, so that a long update is made once
    often = max(1, min(4, int(1000 / max(answer.milliseconds for answer in first.values()))))
    rounds = [{name: worker.updates(often) for name, worker in workers.items()} for _ in range(ROUNDS)]
    for worker in workers.values():
        worker.tell("0")
    return {
        "method": method, **vars(cell), "updates": often,
        "milliseconds": {name: [answers[name].milliseconds for answers in rounds] for name in workers},
        "peak_mb": {name: answer.peak_mb for name, answer in rounds[-1].items()},
        "learned": {name: [answers[name].learned for answers in (first, *rounds)] for name in workers},
    }  # fmt: skip


def apart(line: Line) -> float:
    """The largest relative difference of a loss or a gradient's norm from before's; 0 where all bits are the same."""
    own, before = (np.concatenate(line["learned"][name]) for name in ("own", "before"))
    return float(np.max(np.abs(own - before) / np.maximum(np.abs(before), 1e-12)))


def cost(line: Line, what: str, program: str) -> float:
    """Milliseconds of an update, the mean of all rounds, or the peak in MB."""
    return float(np.mean(line[what][program]))


def ratio(line: Line, what: str, other: str) -> str:
    """Of this checkout's cost to another program's; of times with the least and the greatest round."""
    whole = f"{cost(line, what, 'own') / cost(line, what, other):.2f}"
    if what == "peak_mb":
        return whole
    rounds = [a / b for a, b in zip(line[what]["own"], line[what][other], strict=True)]
    return f"{whole} ({min(rounds):.2f}–{max(rounds):.2f})"


def exponent(lines: list[Line], size: str, what: str, program: str) -> float:
    """p of cost ~ size^p, by least squares of the logarithms."""
    x = np.log([line[size] for line in lines])
    y = np.log([cost(line, what, program) for line in lines])
    return float(np.polyfit(x, y, 1)[0])


def costs_table(lines: list[Line]) -> list[str]:
    """Every cell as Markdown."""
    others = [name for name in lines[0]["peak_mb"] if name != "own"]
    head = ["method", "V", "L", "B", "ms", *(f"time / {o}" for o in others), "MB", *(f"MB / {o}" for o in others)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for line in lines:
        sizes = (f"{line[size]:,}" for size in ("vocabulary", "length", "batch"))
        row = [f"`{line['method']}`", *sizes]
        for what in ("milliseconds", "peak_mb"):
            row += [f"{cost(line, what, 'own'):,.0f}", *(ratio(line, what, other) for other in others)]
        rows.append(row)
    return _markdown(rows)


def growth_table(lines: list[Line]) -> list[str]:
    """The exponents of time and memory along each axis whose cells are there."""
    programs = list(lines[0]["peak_mb"])
    head = ["method", "grows", "from, to", *(f"time, {p}" for p in programs), *(f"memory, {p}" for p in programs)]
    rows = [head, ["---", "---", "---", *["---:"] * (len(head) - 3)]]
    for axis, cells in AXES.items():
        size = axis.split(",")[0]
        for method in METHODS:
            there = [line for cell in cells for line in lines if line["method"] == method and _cell(line) == cell]
            if len(there) < 2:
                continue
            ends = f"{there[0][size]:,} to {there[-1][size]:,}"
            row = [f"`{method}`", axis, ends]
            for what in ("milliseconds", "peak_mb"):
                row += [f"{exponent(there, size, what, program):.2f}" for program in programs]
            rows.append(row)
    return _markdown(rows)


def _cell(line: Line) -> str:
    return f"{line['vocabulary']}:{line['length']}:{line['batch']}"


def _markdown(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def report(lines: list[Line]) -> None:
    """Print all tables."""
    print("\n".join([*costs_table(lines), "", *growth_table(lines)]))
    if "before" in lines[0]["peak_mb"]:
        each = [apart(line) for line in lines]
        print(
            f"\nlosses and norms equal before: {each.count(0)} of {len(each)} bit for bit; at most {max(each):.0e} off"
        )


def left(arguments: argparse.Namespace, lines: list[Line]) -> Iterator[tuple[str, Cell]]:
    """Methods and cells that the file has not, until the minutes are over."""
    there, start = {(line["method"], _cell(line)) for line in lines}, time.monotonic()
    for cell in arguments.cells:
        for method in arguments.methods:
            if (method, cell) not in there and time.monotonic() - start < 60 * arguments.minutes:
                yield method, Cell.of(cell)


def main() -> None:
    """See the module's description."""
    every = list(dict.fromkeys(cell for cells in AXES.values() for cell in cells))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--cells", nargs="+", default=every, metavar="V:L:B")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no cell begins later")
    parser.add_argument(
        "--json", type=Path, help="where the figures are kept; cells that it has are not measured again"
    )
    parser.add_argument("--print", type=Path, dest="figures", help="print what such a file has, and measure nothing")
    arguments = parser.parse_args()
    if arguments.figures:
        return report(json.loads(arguments.figures.read_text("utf-8")))
    folders = {"own": ROOT, "plain": ROOT}
    if arguments.before:
        folders["before"] = arguments.before.absolute()
    lines = json.loads(arguments.json.read_text("utf-8")) if arguments.json and arguments.json.exists() else []
    workers = {name: Worker(name, folder) for name, folder in folders.items()}
    for method, cell in left(arguments, lines):
        lines.append(measured(method, cell, workers))
        print("\n".join(costs_table(lines[-1:])[2:]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    report(lines)


if __name__ == "__main__":
    main()
