"""Is a run the same on any number of processes, at any ZeRO stage, in any micro-batches?

    python benchmarks/equality.py [--updates 200] [--teacher PATH] [--lr 1e-6] [--keep FOLDER]

Trains `configs/smoke.yaml` with the real command, for `integral_kl` and for `didi_instruct`, in one process and one
batch of 8; then again in other ways, and compares loss curves and final averaged weights. Exits with 1 where a
difference is above its bound. All in float32, with one thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from distill.checkpoint import AVERAGE, latest_checkpoint
from distill.data import load_tokenizer
from distill.run_folder import RunFolder
from teachers.denoiser import DenoiserSpec
from teachers.families.causal import create_denoiser

ROOT = Path(__file__).parents[1]
BOUND = 1e-4  # of losses, relative; of weights, absolute
OBJECTIVES = {
    "integral_kl": [],
    "didi_instruct": ["objective={name: didi_instruct}", "teacher_samples=64", "teacher_sample_steps=8"],
}
WAYS = {  # name → processes, overrides; the first is what the others are compared with
    "1 process, 1×8": (1, []),
    "1 process, 2×4": (1, ["train.micro_batch=4"]),
    **{f"2 processes, ZeRO {s}": (2, [f"deepspeed.zero_optimization.stage={s}"]) for s in range(4)},
}


@dataclass
class Result:
    """What a run leaves: (updates,) losses by phase, and the final averaged weights by name."""

    losses: dict[str, Tensor]
    weights: dict[str, Tensor]


def make_teacher(folder: Path, length: int = 32) -> None:
    """Write a tiny teacher: random, but sharp enough (entropy about 5 of log 259 = 5.6 nats) to be worth imitating."""
    tokenizer = load_tokenizer("bundled:teacher")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    teacher = create_denoiser("qwen3", shape, DenoiserSpec(tokenizer.mask_token_id, len(tokenizer), length))
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)  # from 0.02, where every context gives the same uniform guess
    teacher.save(folder)
    tokenizer.save_pretrained(folder)


def read(path: Path) -> Result:
    """The result in a run folder."""
    run = RunFolder.open(path)
    lines = run.read_metrics()
    losses = {p: torch.tensor([x[f"{p}/loss"] for x in lines], dtype=torch.float64) for p in ("student", "critic")}
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return Result(losses, load_file(checkpoint / AVERAGE / "model.safetensors"))


def loss_difference(one: Tensor, other: Tensor) -> tuple[float, int]:
    """The largest difference of two (updates,) curves, and at which update, counted from 1.

    Relative to the root mean square of the curve, because a student's loss goes through zero.
    """
    relative = (one - other).abs() / other.square().mean().sqrt()
    return float(relative.max()), int(relative.argmax()) + 1


def weight_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference of two networks' weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def distil(run: Path, processes: int, overrides: list[str]) -> float:
    """Run the real command; returns its seconds, start included."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [sys.executable, *(launch if processes > 1 else []), "-m", "distill", "distill", "configs/smoke.yaml"]
    start = time.monotonic()
    done = subprocess.run(
        [*words, "--run-dir", str(run), "evaluate.every=null", "train.checkpoint_every=1000000", *overrides],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--teacher", help="a teacher's folder or name; a tiny random one by default")
    parser.add_argument("--lr", type=float, help="of student and critic, instead of the config's")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which are removed otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        teacher = arguments.teacher or str(folder / "teacher")
        if not arguments.teacher:
            make_teacher(folder / "teacher")
        overrides = [f"teacher.path={teacher}", f"train.updates={arguments.updates}"]
        if arguments.lr:
            overrides += [f"train.{phase}.lr={arguments.lr}" for phase in ("student", "critic")]
        broken = any([compare(name, folder, overrides) for name in OBJECTIVES])
    sys.exit(int(broken))


def compare(objective: str, folder: Path, overrides: list[str]) -> bool:
    """Run an objective in every way and print the table; returns whether a bound is broken."""
    table = Table(title=f"{objective}, {' '.join(overrides[1:])}")
    for column in ("way", "student loss", "critic loss", "at update", "weights", "seconds"):
        table.add_column(column, justify="left" if column == "way" else "right")
    reference, broken = None, False
    for number, (way, (processes, own)) in enumerate(WAYS.items()):
        run = folder / f"{objective}-{number}"
        seconds = distil(run, processes, [*overrides, *OBJECTIVES[objective], *own])
        result = read(run)
        if reference is None:
            reference = result
            table.add_row(way, *["–"] * 4, f"{seconds:.0f}")
            continue
        student, at = loss_difference(result.losses["student"], reference.losses["student"])
        critic, _ = loss_difference(result.losses["critic"], reference.losses["critic"])
        weights = weight_difference(result.weights, reference.weights)
        table.add_row(way, f"{student:.1e}", f"{critic:.1e}", str(at), f"{weights:.1e}", f"{seconds:.0f}")
        broken |= not max(student, critic, weights) <= BOUND  # not a number is broken, too
    console = Console()
    console.print(table)
    initial = json.dumps(
        {phase: [round(float(x), 5) for x in curve[[0, -1]]] for phase, curve in reference.losses.items()}
    )
    console.print(f"first and last losses {initial}; bound {BOUND:g}: {'[red]broken[/red]' if broken else 'kept'}")
    return broken


if __name__ == "__main__":
    main()
