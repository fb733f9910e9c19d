"""A process of `benchmarks.growth` that makes updates when it is told to, of whichever checkout is on its path.

    python benchmarks/update_worker.py own     # or before, or plain

A line ``METHOD V:L:B`` on its standard input forks a process for that cell, so that what is imported is imported once
and each cell has a peak of its own. That process then reads numbers, makes so many updates and answers with one line
of JSON, see `Answer`. A line 0 ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import FileIO
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

SHAPE = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
    "intermediate_size": 344, "tie_word_embeddings": False,
}  # fmt: skip
ROWS = 64
"""Of the corpus."""


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

    def __str__(self) -> str:
        return f"{self.vocabulary}:{self.length}:{self.batch}"

    def network(self) -> Any:
        """A Qwen3-shaped denoiser, its weights of a seed; the last entry of the vocabulary is the mask."""
        from teachers.denoiser import DenoiserSpec
        from teachers.families.stock.loading import create_denoiser

        torch.manual_seed(0)
        return create_denoiser("qwen3", SHAPE, DenoiserSpec(self.vocabulary - 1, self.vocabulary, self.length)).eval()

    def text(self) -> np.ndarray:
        """(ROWS · L,) random tokens."""
        return np.random.default_rng(0).integers(self.vocabulary - 1, size=ROWS * self.length)


@dataclass(frozen=True)
class Answer:
    """What a few updates cost.

    Attributes:
        milliseconds: of the processor, an update.
        peak_mb: the most memory so far, above what the imports took.
        learned: losses and norms of the gradients, phase by phase; nothing of a plain loop.
    """

    milliseconds: float
    peak_mb: float
    learned: list[float]


def own_update(method: str, cell: Cell) -> Callable[[], list[float]]:
    """The real trainer's update, of the checkout that is on the path."""
    from distill.config import OptimizerConfig, TrainConfig
    from distill.data.corpus import Corpus
    from distill.runtime.world import start_world
    from distill.training.trainer import Trainer
    from objectives.didi_instruct import DidiInstructConfig
    from objectives.elbo import MaskedElbo
    from objectives.integral_kl import IntegralKLConfig
    from objectives.objective import Distillation, Objective
    from objectives.rollouts import KStep
    from objectives.sdtt import SdttConfig
    from students.samplers import Dilated
    from students.student import frozen, trainable, trainable_copy
    from teachers.process import MaskedProcess

    teacher, process = cell.network(), MaskedProcess()
    configs = {
        "sdtt": SdttConfig(),
        "integral_kl": IntegralKLConfig(rollout=KStep(steps=[4, 8])),
        "didi_instruct": DidiInstructConfig(),
    }
    objective: Objective[Any]
    if method == "pretrain":
        objective = MaskedElbo(trainable(teacher), process)
    else:
        student = trainable_copy(teacher)
        parts = Distillation(frozen(teacher), student, process, cell.length, teacher, sampler=Dilated())
        objective = configs[method].build(parts)
    rates = {phase: OptimizerConfig(lr=1e-4) for phase in objective.phases}
    train = TrainConfig(updates=10**6, batch=cell.batch, student=rates["student"], critic=rates.get("critic"))
    corpus = Corpus(cell.text(), cell.length, 1.0, False)
    trainer = Trainer(objective, rates, corpus, train, None, start_world(), cell.length)

    def update() -> list[float]:
        steps: Any = trainer.update().steps  # by phase in a dictionary at first, later in order
        made = steps.values() if isinstance(steps, dict) else [step for _, step in steps]
        return [number for step in made for number in (step.loss, step.norm)]

    return update


def draw_as_before() -> None:
    """Let this checkout's rows draw from one of torch's generators each, as those of 3a2fcfa did.

    Then both make the same updates: as many passes, at as many masked positions, of the same tokens.
    """
    from distill.training import trainer
    from teachers.randomness import RowStreams, generator_of

    class Generators(RowStreams):
        def __init__(self, seed: int, key: tuple[int, ...], rows: list[int], device: torch.device | str = "cpu"):
            self.generators = [generator_of(seed, len(key), *key, row) for row in rows]
            self.seeds = torch.zeros(len(rows), dtype=torch.int64)

        def take(self, rows: Tensor) -> Generators:
            taken = object.__new__(Generators)
            taken.generators, taken.seeds = [self.generators[row] for row in rows.tolist()], self.seeds[rows]
            return taken

        def bits(self, ahead: Tensor, count: int | Tensor) -> Tensor:
            draws = [torch.rand(ahead.shape[1:], generator=each, dtype=torch.float64) for each in self.generators]
            drawn = torch.stack(draws) if draws else torch.zeros(ahead.shape, dtype=torch.float64)
            return (drawn * 2**53).long() << 11

    patch.object(trainer, "RowStreams", Generators).start()


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def told() -> str:
    """The next line of standard input, read no further: what follows is for another process."""
    return FileIO(0, closefd=False).readline().decode()


def work(program: str, method: str, cell: Cell) -> None:
    """Make updates of a cell as often as told."""
    imports, update = peak_mb(), update_of(program, method, cell)
    while number := int(told() or 0):
        learned, start = [], time.process_time()
        for _ in range(number):
            learned += update()
        milliseconds = 1e3 * (time.process_time() - start) / number
        print(json.dumps(asdict(Answer(milliseconds, peak_mb() - imports, learned))), flush=True)


def update_of(program: str, method: str, cell: Cell) -> Callable[[], list[float]]:
    """One of the programs."""
    if program == "plain":
        from benchmarks.plain import PlainUpdate

        return PlainUpdate(method, cell)
    if program == "own":
        draw_as_before()
    return own_update(method, cell)


def main() -> None:
    """See the module's description."""
    torch.set_num_threads(1)
    import distill.training.trainer  # noqa: F401  what is imported, all programs import

    Cell(17, 6, 4).network()
    while line := told():
        if os.fork():
            os.wait()
            continue
        method, sizes = line.split()
        work(sys.argv[1], method, Cell.of(sizes))
        os._exit(0)


if __name__ == "__main__":
    main()
