"""Is a run the same on any number of processes, at any ZeRO stage, in any micro-batches?

    python benchmarks/equality.py [--updates 200] [--objective NAME] [--teacher PATH] [--keep FOLDER] [key.sub=value …]

Trains `configs/smoke.yaml` with the real command, for `integral_kl` and for `didi_instruct`, in one process and one
batch of 8; then again in other ways, and compares loss curves and final averaged weights. Exits with 1 where a
difference is above its bound. All in float32, with one thread a process.

What sums are split over changes their last bits, and that can legitimately grow into another run: where a uniform falls
within those bits of a cumulative probability, another token is drawn, and from there on the two runs see different
text. The fewer and the steadier the draws, the rarer that is; hence the smaller learning rate and shorter rows than the
config's (SETTING). The tokens that every update drew are recorded and compared, so that a broken bound tells whether a
changed draw came first. The bounds are the same either way: choose other settings, or another train.seed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from distill import cli
from distill.data.tokenizers import load_tokenizer
from distill.runtime.checkpoints import AVERAGE, latest_checkpoint
from distill.runtime.run_folder import RunFolder
from objectives.integral_kl import IntegralKL
from teachers.denoiser import DenoiserSpec
from teachers.families import load_denoiser
from teachers.families.stock.loading import create_denoiser
from teachers.vocabulary import token_id

ROOT = Path(__file__).parents[1]
RECORD = "FEWSTEP_RECORD_DRAWS"  # in the environment of the runs: where they leave what they drew
BOUND = 1e-4  # of losses, relative; of weights, absolute
OBJECTIVES = {
    "integral_kl": [],
    "didi_instruct": ["objective={name: didi_instruct}", "teacher_samples=64", "teacher_sample_steps=8"],
}
SETTING = ["length=8", "train.student.lr=1.0e-5", "train.critic.lr=1.0e-5"]
WAYS = {  # name → processes, overrides; the first is what the others are compared with
    "1 process, 1×8": (1, []),
    "1 process, 2×4": (1, ["train.micro_batch=4"]),
    "1 process, ZeRO 1": (1, ["deepspeed.zero_optimization.stage=1"]),
    **{f"2 processes, ZeRO {s}": (2, [f"deepspeed.zero_optimization.stage={s}"]) for s in range(4)},
}


@dataclass
class Result:
    """What a run leaves.

    Attributes:
        losses: (updates,) by phase.
        weights: final averaged weights by name.
        drawn: (updates, batch, L) the tokens that the student wrote.
    """

    losses: dict[str, Tensor]
    weights: dict[str, Tensor]
    drawn: Tensor


def make_teacher(folder: Path, length: int = 32) -> None:
    """Write a tiny teacher: random, but sharp enough (entropy about 5 of log 259 = 5.6 nats) to be worth imitating."""
    tokenizer = load_tokenizer("bundled:teacher")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    mask_id = token_id(tokenizer, "mask")
    assert mask_id is not None
    teacher = create_denoiser("qwen3", shape, DenoiserSpec(mask_id, len(tokenizer), length))
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
    drawn = [torch.load(file) for file in sorted(path.glob("drawn-*.pt"))]
    return Result(losses, load_file(checkpoint / AVERAGE / "model.safetensors"), torch.cat(drawn, dim=1))


def changed_draw(one: Tensor, other: Tensor) -> int | None:
    """The first update, counted from 1, in which two runs drew different tokens."""
    differs = (one != other).flatten(1).any(1).nonzero()
    return int(differs[0]) + 1 if len(differs) else None


def loss_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two (updates,) curves.

    Relative to the root mean square of the curve, because a student's loss goes through zero.
    """
    return float((one - other).abs().max() / other.square().mean().sqrt())


def weight_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest absolute difference of two networks' weights."""
    assert one.keys() <= other.keys()  # what is tied is saved once
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def distil(run: Path, processes: int, overrides: list[str]) -> float:
    """Run the real command, recording what it draws; returns its seconds, start included."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [sys.executable, *(launch if processes > 1 else []), __file__, "distill", "configs/smoke.yaml"]
    start = time.monotonic()
    done = subprocess.run(
        [*words, "--run-dir", str(run), "evaluate.every=null", "train.checkpoint_every=1000000", "train.log_every=1",
         *overrides],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", RECORD: str(run)}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.monotonic() - start


def record(folder: Path) -> None:
    """Be one process of the real command, and write down the tokens that each rollout drew."""
    drawn, inner = [], IntegralKL.rollout

    def rollout(*arguments: Any) -> Any:
        made = inner(*arguments)
        drawn.append(made.sample)
        return made

    try:
        with patch.object(IntegralKL, "rollout", rollout):
            cli.main()  # leaves with an exit code
    finally:
        if drawn:
            torch.save(torch.stack(drawn), folder / f"drawn-{os.environ.get('RANK', '0')}.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--objective", choices=OBJECTIVES, action="append", help="only this one")
    parser.add_argument("--teacher", help="a teacher's folder or name; a tiny random one by default")
    parser.add_argument("overrides", nargs="*", help="key.sub=value, after the benchmark's own")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which are removed otherwise")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        teacher = arguments.teacher or str(folder / "teacher")
        if not arguments.teacher:
            make_teacher(folder / "teacher")
        overrides = [f"teacher.path={teacher}", f"train.updates={arguments.updates}", *SETTING, *arguments.overrides]
        initial = load_denoiser(teacher).network.state_dict()
        broken = any([compare(name, folder, overrides, initial) for name in arguments.objective or OBJECTIVES])
    sys.exit(int(broken))


def compare(objective: str, folder: Path, overrides: list[str], initial: dict[str, Tensor]) -> bool:
    """Run an objective in every way and print the table; returns whether a bound is broken.

    Args:
        initial: the weights that the student starts from.
    """
    table = Table(title=f"{objective}, {' '.join(overrides[1:])}")
    for column in ("way", "student loss", "critic loss", "weights", "changed draw", "seconds"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    reference, broken = None, False
    for number, (way, (processes, own)) in enumerate(WAYS.items()):
        run = folder / f"{objective}-{number}"
        seconds = distil(run, processes, [*overrides, *OBJECTIVES[objective], *own])
        result = read(run)
        if reference is None:
            reference = result
            table.add_row(way, *["–"] * 4, f"{seconds:.0f}")
            continue
        differences = [loss_difference(result.losses[p], reference.losses[p]) for p in ("student", "critic")]
        differences.append(weight_difference(result.weights, reference.weights))
        changed = changed_draw(result.drawn, reference.drawn)
        where = f"update {changed}" if changed else "none"
        table.add_row(way, *(f"{d:.1e}" for d in differences), where, f"{seconds:.0f}")
        broken |= not all(d <= BOUND for d in differences)  # not a number is broken, too
    console = Console(width=110)
    console.print(table)
    assert reference is not None
    console.print(
        f"{reference.drawn.numel():,} tokens in the samples; last losses "
        + ", ".join(f"{phase} {float(curve[-1]):.4f}" for phase, curve in reference.losses.items())
        + f"; largest movement of a weight {weight_difference(reference.weights, initial):.1e}; "
        + f"bound {BOUND:g}: {'broken' if broken else 'kept'}"
    )
    return broken


if __name__ == "__main__":
    if RECORD in os.environ:
        record(Path(os.environ[RECORD]))
    else:
        main()
