"""What does a conversion gain over training from scratch, and which one gains most?

    python -m benchmarks.conversion RUNS --data FOLDER [--only NAME …] [--seeds 0 1 2] [--updates 200]
    python -m benchmarks.conversion --print docs/conversion.json

Converts bundled:judge by each config of configs/convert, and trains its architecture from scratch, with as many updates
and as many positions a pass; FOLDER holds the novels, train.parquet and validation.parquet. Runs that are finished are
not made again. RUNS/conversion.json holds all figures, and the second command prints its table.

*ELBO* is in nats a token, on 1,024 held-out rows, of the averaged weights; for blocks it is the bound of a model that
writes them one after the other. *ELBO at half* is the same after half of the updates, on 256 rows. *CPU seconds* are of
the whole command, start and measurement included; *seconds* are by the clock, and the machine does other work as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from distill.config import PretrainConfig, load_config

CONVERT = ["convert", "bundled:judge", "--config"]
SCRATCH = ["pretrain", "bundled:convert", "tokenizer.path=bundled:judge"]
SETTINGS = {
    "from scratch": [*SCRATCH, "train.student.lr=2.0e-3"],
    "from scratch, lr doubled": [*SCRATCH, "train.student.lr=4.0e-3"],
    "plain": [*CONVERT, "bundled:convert"],
    "with shift": [*CONVERT, "bundled:convert", "model.shift=true"],
    "annealed": [*CONVERT, "bundled:convert/annealed"],
    "complementary": [*CONVERT, "bundled:convert/complementary"],
    "attention faster": [*CONVERT, "bundled:convert/rates"],
    "blocks of 32": [*CONVERT, "bundled:convert/block"],
    "blocks that grow and shrink": [*CONVERT, "bundled:convert/growing"],
}


def words(setting: str, data: Path, updates: int, seed: int) -> list[str]:
    """The command line of a run, but for its folder."""
    shape = load_config(PretrainConfig, "bundled:pretrain/novels-teacher").model.shape
    scratch = [f"model.shape={json.dumps(shape)}"] if setting.startswith("from scratch") else []
    return [
        *SETTINGS[setting], *scratch, f"data.path={data / 'train.parquet'}",
        f"data.heldout={data / 'validation.parquet'}", "train.precision=float32", f"train.updates={updates}",
        "train.checkpoint_every=50", "train.checkpoint_minutes=3", f"train.seed={seed}",
    ]  # fmt: skip


def figures_of(setting: str, seed: int, updates: int, data: Path, run: Path) -> dict[str, Any]:
    """Make a run, unless it has been made, and say what it gave."""
    done = run / "figures.json"
    if not done.exists():
        shutil.rmtree(run, ignore_errors=True)  # of a run that was stopped, the seconds are not known
        before, start = cpu_seconds(), time.perf_counter()
        command = [sys.executable, "-m", "fewstep", *words(setting, data, updates, seed), "--run-dir", str(run)]
        subprocess.run(command, check=True)
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - before}
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        curve = {line["update"]: line["heldout_nats"] for line in lines if "heldout_nats" in line}
        heldout = json.loads((run / "heldout.json").read_text("utf-8"))
        figures = {"setting": setting, "seed": seed, "updates": updates, **spent, **heldout, "curve": curve}
        done.write_text(json.dumps(figures), "utf-8")
    return json.loads(done.read_text("utf-8"))


def cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def markdown(figures: list[dict[str, Any]]) -> str:
    """A table with a row a setting: the means over its seeds, and the range of the last column."""
    lines = ["| setting | seeds | seconds | CPU seconds | ELBO at half | ELBO | range |", "| --- |" + " ---: |" * 6]
    for setting in dict.fromkeys(figure["setting"] for figure in figures):
        runs = [figure for figure in figures if figure["setting"] == setting]
        nats = [run["heldout_nats"] for run in runs]
        half = mean(run["curve"][str(run["updates"] // 2)] for run in runs)
        seconds, cpu = (mean(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
        apart = f"{min(nats):.3f} – {max(nats):.3f}" if len(runs) > 1 else ""
        lines.append(
            f"| {setting} | {len(runs)} | {seconds:.0f} | {cpu:.0f} | {half:.3f} | {mean(nats):.3f} | {apart} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--print", type=Path, dest="file")
    wanted = parser.parse_args()
    if wanted.file is None:
        for seed in wanted.seeds:
            for setting in wanted.only:
                run = wanted.runs / f"{setting.replace(',', '').replace(' ', '-')}-{seed}"
                figures_of(setting, seed, wanted.updates, wanted.data, run)
        wanted.file = wanted.runs / "conversion.json"
        made = [json.loads(path.read_text("utf-8")) for path in sorted(wanted.runs.glob("*/figures.json"))]
        made.sort(key=lambda figure: (list(SETTINGS).index(figure["setting"]), figure["seed"]))
        wanted.file.write_text(json.dumps(made, indent=1), "utf-8")
    print(markdown(json.loads(wanted.file.read_text("utf-8"))))


if __name__ == "__main__":
    main()
