"""What a data-free distillation learns from: rows and trajectories that the teacher writes before training starts.

They are the same for the same seed, whatever they were interrupted by, and equal on every process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.config import DistillConfig
from distill.data.batches import Data, Rows, training_batch
from distill.data.corpus import Corpus, TrajectoryCorpus
from distill.data.kept_rows import FILE, PARTS, Parts, load, metadata, save
from distill.data.prompted import PromptedCorpus, with_tail
from distill.runtime.messages import say
from distill.runtime.progress import track
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from objectives.objective import Needs, Objective
from students.fill import fill
from students.samplers import Ancestral
from students.trajectories import best_order
from teachers.canvas import Batch
from teachers.denoiser import Denoiser, ExactLaw, end_ids
from teachers.process import MaskedProcess

AT_ONCE = 64
"""Rows the teacher writes at a time [own]."""


def training_rows(
    objective: Objective,
    config: DistillConfig,
    teacher: Denoiser,
    corpus: Data | None,
    run: RunFolder | None,
    world: World,
    account: Callable[[], object] | None = None,
) -> Rows | None:
    """What the objective learns from: the data as they are, or what the teacher made, equal on every process.

    An objective that needs trajectories gets, of the data, the first ``teacher_samples`` rows of the first epoch with
    the order in which the teacher is confident of them; without data, tokens and order are the teacher's. Of prompts
    alone, it gets as many with what the teacher writes after them, and so does an objective that needs rows. One that
    needs rows that are written gets them whatever completions there are.

    Args:
        corpus: the data, if there are any.
        run: keeps what the teacher made, batch by batch, so that one that is resumed goes on; None to keep it nowhere.
        account: called after each batch that is kept, on every process.

    Raises:
        UserError: what a run has kept is damaged, or there is no room to keep it.
    """
    prompted = isinstance(corpus, PromptedCorpus)
    if objective.needs == "nothing":
        return corpus if prompted else None
    if objective.needs == "rows" and corpus is not None and (not prompted or corpus.labelled):
        return corpus
    end = corpus.end if prompted else None
    if objective.needs == "written rows" and not prompted:
        corpus = None  # there is nothing to write after
    if run is None:
        tensors, _ = write_rows(config, teacher, world, objective.needs, objective.candidates, corpus)
        return _as_corpus(tensors, config, end, end_ids(teacher))
    path, origin = run.path / FILE, _origin(objective, config, teacher, corpus)
    if not world.on_main(lambda: path.is_file() and metadata(path).get("origin") == origin):
        parts = Parts(run.path / PARTS, f"{origin} on {world.device.type}")
        tensors, seconds = write_rows(
            config, teacher, world, objective.needs, objective.candidates, corpus, parts, account
        )
        world.on_main(lambda: save(path, tensors, origin, seconds))
        world.on_main(parts.remove)
    return _as_corpus(load(path), config, end, end_ids(teacher))


def _as_corpus(tensors: dict[str, Tensor], config: DistillConfig, end: int | None, ends: Sequence[int]) -> Rows:
    """What is trained on; rows of prompts are filled up with ``end``, and end with any of ``ends`` as well."""
    tokens = tensors["tokens"].numpy()
    if "order" in tensors:
        order = tensors["order"].numpy()
        return TrajectoryCorpus(tokens if end is None else with_tail(tokens, order >= 0, end, ends), order)
    if end is not None:
        return PromptedCorpus.of(tokens, tensors["given"].numpy(), end, ends)
    return Corpus(tokens.reshape(-1), config.sequence_length, 1.0, packed=False)


def write_rows(
    config: DistillConfig,
    teacher: Denoiser,
    world: World,
    needs: Needs = "rows",
    candidates: int = 1,
    corpus: Data | None = None,
    kept: Parts | None = None,
    account: Callable[[], object] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Let the teacher write ``teacher_samples`` rows in ``teacher_sample_steps`` steps, or order those of the data.

    Args:
        kept: what it has written already, and where the rest is kept; None to keep it nowhere.
        account: see `training_rows`.

    Returns:
        "tokens" (N, L) and, for trajectories, "order" (N, L), −1 at prompts; or, for prompts, "given" (N,), how long
        each is; int32, on the CPU, the same for the same seed. And the seconds that it took.
    """
    samples, length, start = config.teacher_samples, config.sequence_length, time.monotonic()
    generator = torch.Generator(world.device)
    generator.manual_seed(config.train.seed)
    if needs != "trajectories" and not isinstance(corpus, PromptedCorpus) and isinstance(teacher, ExactLaw):
        tokens = teacher.sample(samples, generator, length).int().cpu()  # exact, and without a step
        return {"tokens": tokens}, time.monotonic() - start
    batch = training_batch(corpus, config.train.seed, range(samples), length, teacher.spec.mask_id, world.device)
    writer = _Writer(config, teacher, needs, candidates, isinstance(corpus, PromptedCorpus), generator)
    total, done = -(-samples // AT_ONCE), 0 if kept is None else world.on_main(kept.count)
    parts, seconds = ([], 0.0) if kept is None else kept.read(done, generator)
    ordered = needs == "trajectories" and batch.labels is not None
    what = "ordering rows of the data with" if ordered else "sampling rows from"
    there = f", {done * AT_ONCE} are there" if done else ""
    say(f"{what} the teacher: {samples} at {config.teacher_sample_steps} steps{there}")
    for number in track(range(done, total), "teacher's rows", total=total - done):
        start = time.monotonic()
        parts.append(writer.write(batch.rows(slice(number * AT_ONCE, (number + 1) * AT_ONCE))))
        took = time.monotonic() - start
        if kept is not None:
            world.on_main(partial(kept.keep, number, parts[-1], generator, took))
        if account is not None:
            account()
        seconds += took
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, seconds


@dataclass(frozen=True)
class _Writer:
    """A teacher that writes canvases, or orders what was written on them."""

    config: DistillConfig
    teacher: Denoiser
    needs: Needs
    candidates: int
    prompted: bool
    generator: torch.Generator

    def write(self, batch: Batch) -> dict[str, Tensor]:
        """The tensors of `write_rows`, of some of its rows."""
        steps, process = self.config.teacher_sample_steps, MaskedProcess(self.config.teacher.process)
        if self.needs != "trajectories":
            rule = Ancestral(block_length=self.teacher.spec.block_size)
            filled = fill(self.teacher, batch.canvas, rule, steps, self.generator, process=process)
            tensors = {"tokens": filled.tokens}
            if self.prompted:
                tensors["given"] = (~batch.canvas.open).sum(1)
        else:
            best = best_order(
                self.teacher, batch.canvas, steps, self.generator, process, self.candidates, batch.labels,
                order_blocks(self.config),
            )  # fmt: skip
            tensors = {"tokens": best.tokens, "order": best.order}
        return {name: tensor.int().cpu() for name, tensor in tensors.items()}


def order_blocks(config: DistillConfig) -> int | None:
    """Tokens of the blocks within which the teacher's order is recorded: the student's, where it writes in some."""
    return config.sampler.block_tokens if config.sampler.budget == "block" else None


def _origin(objective: Objective, config: DistillConfig, teacher: Denoiser, corpus: Data | None) -> str:
    """All that the rows depend on, as a text."""
    values: dict[str, Any] = {
        "needs": objective.needs,
        "candidates": objective.candidates,
        "samples": config.teacher_samples,
        "steps": config.teacher_sample_steps,
        "length": config.sequence_length,
        "seed": config.train.seed,
        "teacher": config.teacher.model_dump(mode="json", exclude={"placement"}),
        "data": corpus.identity() if corpus is not None else None,
    }
    if (size := order_blocks(config)) is not None:
        values["blocks"] = size
    return json.dumps(values, sort_keys=True)
