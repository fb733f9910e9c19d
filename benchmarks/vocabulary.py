"""What a training update costs with a large vocabulary: time and peak memory, beside a plain loop and beside before.

    python benchmarks/vocabulary.py --before ../before --json docs/vocabulary.json
    python benchmarks/vocabulary.py --cells 50258:128:2 --methods sdtt --rounds 3

Three programs make the same updates in turns, each in a process of its own: this checkout; another one (``--before``);
and **plain**, the method's mathematics as its authors' code writes it, around the same network: logits at all
positions, (B, L, V) wide, a uniform for each of their entries where a token is drawn, AdamW and an average. Time is
what the process computed on one thread, and a ratio is the median over rounds of two programs' times in the same round.
Memory is the peak of the process above what its imports took: weights, gradients and Adam's moments, and what an update
adds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROOT = Path(__file__).parents[1]
METHODS = ("sdtt", "integral_kl", "pretrain")
CELLS = (
    "1024:128:8", "1024:128:16", "1024:256:8", "1024:512:8",  # batch and length
    "8192:128:4", "50258:128:2", "50258:128:4", "50258:256:2",  # vocabulary
)  # fmt: skip
SHAPE = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
    "intermediate_size": 344, "tie_word_embeddings": False,
}  # fmt: skip
NEVER = -1e6
console = Console()


@dataclass(frozen=True)
class Cell:
    """The sizes of an update: V, L and B."""

    vocabulary: int
    length: int
    batch: int

    @staticmethod
    def of(text: str) -> Cell:
        """From ``V:L:B``."""
        return Cell(*map(int, text.split(":")))

    def network(self) -> Any:
        """A Qwen3-shaped denoiser, its weights of a seed; the last entry of the vocabulary is the mask."""
        from teachers.denoiser import DenoiserSpec
        from teachers.families.stock.loading import create_denoiser

        torch.manual_seed(0)
        return create_denoiser("qwen3", SHAPE, DenoiserSpec(self.vocabulary - 1, self.vocabulary, self.length)).eval()

    def text(self, rows: int) -> np.ndarray:
        """(rows · L,) random tokens."""
        return np.random.default_rng(0).integers(self.vocabulary - 1, size=rows * self.length)


# --- a checkout of this project ---------------------------------------------------------------------------------------


def own_update(method: str, cell: Cell) -> Callable[[], Any]:
    """The real trainer's update."""
    from distill.config import OptimizerConfig, TrainConfig
    from distill.data.corpus import Corpus
    from distill.runtime.world import start_world
    from distill.training.trainer import Trainer
    from objectives.elbo import MaskedElbo
    from objectives.integral_kl import IntegralKLConfig
    from objectives.objective import Distillation, Objective
    from objectives.rollouts import KStep
    from objectives.sdtt import SdttConfig
    from students.samplers import Dilated
    from students.student import frozen, trainable, trainable_copy
    from teachers.process import MaskedProcess

    teacher, process = cell.network(), MaskedProcess()
    objective: Objective[Any]
    if method == "pretrain":
        objective = MaskedElbo(trainable(teacher), process)
    else:
        student = trainable_copy(teacher)
        parts = Distillation(frozen(teacher), student, process, cell.length, teacher, sampler=Dilated())
        config = SdttConfig() if method == "sdtt" else IntegralKLConfig(rollout=KStep(steps=[4, 8]))
        objective = config.build(parts)
    rates = {phase: OptimizerConfig(lr=1e-4) for phase in objective.phases}
    train = TrainConfig(updates=10**6, batch=cell.batch, student=rates["student"], critic=rates.get("critic"))
    corpus = Corpus(cell.text(64), cell.length, 1.0, False)
    return Trainer(objective, rates, corpus, train, None, start_world(), cell.length).update


# --- plain torch, after the released code of MDLM and SDTT ------------------------------------------------------------


class Plain:
    """A network that trains in plain torch, all logits at all positions."""

    def __init__(self, cell: Cell):
        self.mask_id, self.network = cell.vocabulary - 1, cell.network().model.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.average: list[Tensor] = []

    def law(self, z: Tensor) -> Tensor:
        """(B, L, V) log-probabilities: no mask, and what is known stays."""
        logits = self.network(z, use_cache=False).logits.float()
        # the two in-place changes that the released code makes break the graph of a log_softmax, so it is written out
        logits[..., self.mask_id] += NEVER
        logits = logits - logits.logsumexp(-1, keepdim=True)
        known = z != self.mask_id
        logits[known] = NEVER
        logits[known, z[known]] = 0
        return logits

    @torch.no_grad()
    def step(self, z: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Rows at times t (B,) → rows at times s, and the law that they were drawn from."""
        law = self.law(z)
        chances = law.exp() * (t - s)[:, None, None]
        chances[..., self.mask_id] = s[:, None]
        drawn = (chances / (1e-10 - (torch.rand_like(chances) + 1e-10).log())).argmax(-1)
        return torch.where(z == self.mask_id, drawn, z), law

    def learn(self, loss: Tensor) -> None:
        """A step, and the average's."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for average, weight in zip(self.average, self.network.parameters(), strict=False):
                average.lerp_(weight, 1e-2)


class PlainUpdate:
    """One update of a method."""

    def __init__(self, method: str, cell: Cell):
        self.method, self.cell = method, cell
        self.rows = torch.from_numpy(cell.text(64)).view(64, cell.length)
        self.student = Plain(cell)
        self.student.average = [weight.detach().clone() for weight in self.student.network.parameters()]
        if method != "pretrain":
            self.teacher = Plain(cell)
            self.teacher.network.requires_grad_(False)
        if method == "integral_kl":
            self.critic = Plain(cell)

    def __call__(self) -> None:
        """Make it."""
        x0 = self.rows[torch.randint(64, (self.cell.batch,))]
        getattr(self, self.method)(x0, torch.rand(len(x0)).clamp(min=1e-3))

    def masked(self, x0: Tensor, t: Tensor) -> Tensor:
        """Rows at times t (B,)."""
        return torch.where(torch.rand(x0.shape) < t[:, None], self.student.mask_id, x0)

    def pretrain(self, x0: Tensor, t: Tensor) -> None:
        """The masked ELBO (2406.07524)."""
        law = self.student.law(self.masked(x0, t))
        self.student.learn((-law.gather(-1, x0[..., None])[..., 0] / t[:, None]).mean())

    def sdtt(self, x0: Tensor, t: Tensor) -> None:
        """Two of the teacher's steps in one, by the reverse KL (2410.21035)."""
        start, dt = self.masked(x0, t), 1 / 1024
        z, target = start, torch.zeros(())
        for number in range(2):
            at = (t - number * dt).clamp(min=0)
            still = (z == self.student.mask_id)[..., None]
            z, law = self.teacher.step(z, at, (at - dt).clamp(min=0))
            target = torch.where(still, law, target)
        law = self.student.law(start)
        distance = (law.exp() * (law - target)).sum(-1)
        self.student.learn(distance[start == self.student.mask_id].mean())

    def integral_kl(self, x0: Tensor, t: Tensor) -> None:
        """A state of the student's own sampler, a critic, and the marginalised reward (2503.15457, 2602.19066)."""
        # 1. what the student writes
        steps = (4, 8)[int(torch.randint(2, ()))]
        state, made = torch.full_like(x0, self.student.mask_id), int(torch.randint(steps, ()))
        times = torch.linspace(1, 0, steps + 1)[:, None].expand(-1, len(x0))
        for number in range(made):
            state = self.student.step(state, times[number], times[number + 1])[0]
        sample = self.student.step(state, times[made], torch.zeros(len(x0)))[0]
        fake = self.masked(sample, t)
        hidden = fake == self.student.mask_id
        # 2. the critic learns it
        law = self.critic.law(fake)
        self.critic.learn(-law.gather(-1, sample[..., None])[..., 0][hidden].mean())
        # 3. the student gets what the teacher makes likelier
        with torch.no_grad():
            reward = (self.teacher.law(fake) - self.critic.law(fake)).clamp(-5, 5)
        law = self.student.law(state)
        gain = (law.exp() * reward).sum(-1) * (hidden & (state == self.student.mask_id))
        self.student.learn(-(gain.sum(1) / self.cell.length / t).sum() / len(x0))


# --- programs in turns ------------------------------------------------------------------------------------------------


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(program: str, method: str, cell: Cell) -> None:
    """Make updates as often as asked on stdin: a number, answered by CPU milliseconds an update and the peak."""
    torch.set_num_threads(1)
    import distill.training.trainer  # noqa: F401  what is imported, both programs import

    imports = peak_mb()
    update = PlainUpdate(method, cell) if program == "plain" else own_update(method, cell)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            update()
        print(json.dumps([1e3 * (time.process_time() - start) / int(line), peak_mb() - imports]), flush=True)


class Worker:
    """A program in a process of its own."""

    def __init__(self, name: str, folder: Path, method: str, cell: Cell):
        self.name, sizes = name, f"{cell.vocabulary}:{cell.length}:{cell.batch}"
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", name, "--methods", method, "--cells", sizes],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder,
        )  # fmt: skip

    def updates(self, number: int) -> tuple[float, float]:
        """CPU milliseconds an update, and the peak so far in MB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(number, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the program {self.name!r} failed")
        milliseconds, peak = json.loads(line)
        return milliseconds, peak

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()


def measured(method: str, cell: Cell, folders: Mapping[str, Path], rounds: int, updates: int) -> dict[str, Any]:
    """One line of the result: of each program the milliseconds of each round, and its peak."""
    workers = {name: Worker(name, folder, method, cell) for name, folder in folders.items()}
    for worker in workers.values():
        worker.updates(2)  # memory and caches are as they stay
    times: dict[str, list[float]] = {name: [] for name in workers}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name, worker in workers.items():
            milliseconds, peaks[name] = worker.updates(updates)
            times[name].append(milliseconds)
    for worker in workers.values():
        worker.end()
    sizes = {"vocabulary": cell.vocabulary, "length": cell.length, "batch": cell.batch}
    return {"method": method, **sizes, "milliseconds": times, "peak_mb": peaks}


def ratio(line: dict[str, Any], one: str, other: str) -> str:
    """The median of one program's times over another's, and the least and the greatest."""
    times = line["milliseconds"]
    values = [a / b for a, b in zip(times[one], times[other], strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def report(lines: list[dict[str, Any]]) -> None:
    """Print ratios: below 1, this checkout is faster or takes less memory."""
    others = [name for name in lines[0]["peak_mb"] if name != "own"]
    table = Table(title="this checkout: CPU milliseconds an update and peak MB; its ratios to the other programs")
    for column in ("method", "V", "L", "B", "ms", "MB", *(f"{what} / {o}" for o in others for what in ("time", "MB"))):
        table.add_column(column, justify="right")
    for line in lines:
        peaks = line["peak_mb"]
        row = [line["method"], *(str(line[key]) for key in ("vocabulary", "length", "batch"))]
        row += [f"{statistics.median(line['milliseconds']['own']):.0f}", f"{peaks['own']:.0f}"]
        for other in others:
            row += [ratio(line, "own", other), f"{peaks['own'] / peaks[other]:.2f}"]
        table.add_row(*row)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="V:L:B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2, help="of each program in a round")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.work, arguments.methods[0], Cell.of(arguments.cells[0]))
    folders = {"own": ROOT, "plain": ROOT}
    if arguments.before:
        folders["before"] = arguments.before.absolute()
    lines = []
    for cell in map(Cell.of, arguments.cells):
        for method in arguments.methods:
            lines.append(measured(method, cell, folders, arguments.rounds, arguments.updates))
            report(lines[-1:])
            if arguments.json:
                arguments.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    report(lines)


if __name__ == "__main__":
    main()
