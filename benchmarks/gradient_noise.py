"""How noisy is an update's gradient, estimator by estimator, and do they point the same way?

    python -m benchmarks.gradient_noise RUN [--draws 32] [--rows 64] [--only NAME …]

At the student and the auxiliary denoiser of an `integral_kl` run's last checkpoint, each estimator's student gradient
is drawn again and again, every draw a whole update with a rollout of its own. *Noise* is the root of E|g − E g|² over
|E g|: so much more of it than of signal is in one update, and noise² updates make the two equal. *Cosine* is that of
the mean gradient to the first estimator's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from distill.config import DistillConfig, load_config
from distill.models import as_distillation, load_student, load_teacher
from distill.runtime.checkpoints import latest_checkpoint, load_network, verify_checkpoint
from distill.runtime.progress import progress_bar
from distill.runtime.run_folder import RunFolder
from objectives.integral_kl import IntegralKLConfig
from objectives.objective import Objective
from objectives.ratios import Auxiliary
from teachers.canvas import Batch, Canvas
from teachers.randomness import RowStreams

ESTIMATORS = {
    "marginalised": {"gradient": "marginalised"},
    "logit": {"gradient": "logit"},
    "per_token": {"gradient": {"name": "per_token", "group_size": 8}},
    "score_function": {"gradient": {"name": "score_function", "group_size": 8}},
    "marginalised, coupled": {"gradient": "marginalised", "corruption": "coupled"},
    "marginalised, nested": {"gradient": "marginalised", "corruption": "nested"},
    "marginalised, reward_clamp 1": {"gradient": "marginalised", "ratio": {"reward_clamp": 1.0}},
    "marginalised, reward_clamp 50": {"gradient": "marginalised", "ratio": {"reward_clamp": 50.0}},
}
console = Console()


@dataclass
class Moments:
    """Sum of ``draws`` gradients, (P,), and of their squared lengths; seconds that they took."""

    total: Tensor
    squares: float
    draws: int
    seconds: float

    @property
    def signal_and_noise(self) -> tuple[float, float]:
        """|E g|, without what the noise of the mean adds to it, and the root of E|g − E g|²."""
        mean = float(self.total.square().sum()) / self.draws**2
        variance = (self.squares - self.draws * mean) / (self.draws - 1)
        return max(mean - variance / self.draws, 0.0) ** 0.5, variance**0.5


def draw_gradients(objective: Objective, draws: int, batch: Batch) -> Moments:
    """The student's gradient, a mean over the batch's rows, again and again."""
    rows = len(batch)
    trained = [p for p in objective.student.parameters() if p.requires_grad]
    total, squares, start = torch.zeros(sum(p.numel() for p in trained), dtype=torch.float64), 0.0, time.perf_counter()
    for draw in range(draws):
        rollout = objective.rollout(batch, RowStreams(0, (draw,), range(rows)))
        loss = objective.loss("student", rollout).sum / objective.count("student", rollout)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]).double()
        total += gradient
        squares += float(gradient.square().sum())
    return Moments(total, squares, draws, time.perf_counter() - start)


def main() -> None:
    """Draw, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    asked = parser.parse_args()
    disable_progress_bar()
    run = RunFolder.open(asked.run)
    config = load_config(DistillConfig, run.config)
    checkpoint = latest_checkpoint(run)
    objective = config.objective
    if not isinstance(objective, IntegralKLConfig) or not isinstance(objective.ratio, Auxiliary) or checkpoint is None:
        parser.error(f"{asked.run} is no run of integral_kl with an auxiliary denoiser and a checkpoint; give one")
    verify_checkpoint(checkpoint)
    teacher, tokenizer = load_teacher(config.teacher)
    student = load_student(config, teacher, tokenizer)
    load_network(checkpoint, "student", student)
    table = Table(title=f"{asked.draws} draws of {asked.rows} rows, {checkpoint}")
    for column in ("estimator", "|mean|", "noise", "noise²", "cosine", "seconds"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    batch = Batch(Canvas.blank(asked.rows, config.sequence_length, student.spec.mask_id))
    first = None
    with progress_bar() as bar:
        for name in bar.track(asked.only, description="estimators"):
            settings = {**objective.model_dump(), **ESTIMATORS[name]}
            built = IntegralKLConfig(**settings).build(as_distillation(config, teacher, student))
            load_network(checkpoint, "critic", built.networks["critic"])
            found = draw_gradients(built, asked.draws, batch)
            first = found.total if first is None else first
            cosine = float(torch.nn.functional.cosine_similarity(found.total, first, dim=0))
            signal, noise = found.signal_and_noise
            ratio, seconds = noise / signal if signal else float("inf"), found.seconds / asked.draws
            table.add_row(name, f"{signal:.3g}", f"{ratio:.2f}", f"{ratio**2:.1f}", f"{cosine:.2f}", f"{seconds:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
