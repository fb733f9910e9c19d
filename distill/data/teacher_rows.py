"""What the teacher writes before training starts: rows, or rows with the order in which it unmasked them.

It takes minutes, so it is kept in the run folder, ``teacher-rows.safetensors``, and a resumed run reads it.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.config import DistillConfig
from distill.data.batches import Data, Rows, training_batch
from distill.data.corpus import Corpus, TrajectoryCorpus
from distill.data.prompted import PromptedCorpus
from distill.runtime.messages import say
from distill.runtime.progress import track
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import World
from objectives.objective import Needs, Objective
from students.fill import fill
from students.samplers import Ancestral
from students.trajectories import best_order
from teachers.denoiser import Denoiser, ExactLaw
from teachers.errors import UserError
from teachers.files import publish
from teachers.process import MaskedProcess

FILE = "teacher-rows.safetensors"
AT_ONCE = 64
"""Rows the teacher writes at a time [own]."""


def training_rows(
    objective: Objective,
    config: DistillConfig,
    teacher: Denoiser,
    corpus: Data | None,
    run: RunFolder | None,
    world: World,
) -> Rows | None:
    """What the objective learns from: the data as they are, or what the teacher made, equal on every process.

    An objective that needs trajectories gets, of the data, the first ``teacher_samples`` rows of the first epoch with
    the order in which the teacher is confident of them; without data, tokens and order are the teacher's. Of prompts
    alone, it gets as many with what the teacher writes after them, and so does an objective that needs rows.

    Args:
        corpus: the data, if there are any.
        run: keeps what the teacher made; None to keep it nowhere.

    Raises:
        UserError: what a run has kept is damaged, or there is no room to keep it.
    """
    prompted = isinstance(corpus, PromptedCorpus)
    if objective.needs == "nothing":
        return corpus if prompted else None
    if objective.needs == "rows" and corpus is not None and not (prompted and not corpus.labelled):
        return corpus
    end = corpus.end if prompted else None
    if run is None:
        tensors = write_rows(config, teacher, world, objective.needs, objective.candidates, corpus)
        return _as_corpus(tensors, config, end)
    path, origin = run.path / FILE, _origin(objective, config, corpus)
    if not world.on_main(lambda: path.is_file() and _metadata(path).get("origin") == origin):
        start = time.monotonic()
        tensors = write_rows(config, teacher, world, objective.needs, objective.candidates, corpus)
        seconds = time.monotonic() - start
        world.on_main(lambda: _save(path, tensors, origin, seconds))
    return _as_corpus(_load(path), config, end)


def _as_corpus(tensors: dict[str, Tensor], config: DistillConfig, end: int | None) -> Rows:
    if "order" in tensors:
        return TrajectoryCorpus(tensors["tokens"].numpy(), tensors["order"].numpy())
    if end is not None:
        return PromptedCorpus.of(tensors["tokens"].numpy(), tensors["given"].numpy(), end)
    return Corpus(tensors["tokens"].numpy().reshape(-1), config.sequence_length, 1.0, packed=False)


def write_rows(
    config: DistillConfig,
    teacher: Denoiser,
    world: World,
    needs: Needs = "rows",
    candidates: int = 1,
    corpus: Data | None = None,
) -> dict[str, Tensor]:
    """Let the teacher write ``teacher_samples`` rows in ``teacher_sample_steps`` steps, or order those of the data.

    Returns:
        "tokens" (N, L) and, for trajectories, "order" (N, L), −1 at prompts; or, for prompts, "given" (N,), how long
        each is; int32, on the CPU, the same for the same seed.
    """
    samples, length, steps = config.teacher_samples, config.sequence_length, config.teacher_sample_steps
    process, generator = MaskedProcess(config.teacher.process), torch.Generator(world.device)
    generator.manual_seed(config.train.seed)
    if needs == "rows" and corpus is None and isinstance(teacher, ExactLaw):
        return {"tokens": teacher.sample(samples, generator, length).int().cpu()}  # exact, and without a step
    batch = training_batch(corpus, config.train.seed, range(samples), length, teacher.spec.mask_id, world.device)
    what = "ordering rows of the data with" if batch.labels is not None else "sampling rows from"
    say(f"{what} the teacher: {samples} at {steps} steps")
    parts: list[dict[str, Tensor]] = []
    for start in track(range(0, samples, AT_ONCE), "teacher's rows", total=-(-samples // AT_ONCE)):
        rows = batch.rows(slice(start, start + AT_ONCE))
        if needs == "rows":
            filled = fill(teacher, rows.canvas, Ancestral(), steps, generator, process=process)
            lengths = {} if corpus is None else {"given": (~rows.canvas.open).sum(1)}
            parts.append({"tokens": filled.tokens, **lengths})
        else:
            best = best_order(teacher, rows.canvas, steps, generator, process, candidates, rows.labels)
            parts.append({"tokens": best.tokens, "order": best.order})
    return {name: torch.cat([part[name] for part in parts]).int().cpu() for name in parts[0]}


def writing_seconds(run: RunFolder) -> float:
    """How long the teacher took for what a run has kept; 0 if it keeps nothing.

    Raises:
        UserError: it is damaged.
    """
    path = run.path / FILE
    return float(_metadata(path)["seconds"]) if path.is_file() else 0.0


def _origin(objective: Objective, config: DistillConfig, corpus: Data | None) -> str:
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
    return json.dumps(values, sort_keys=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def _save(path: Path, tensors: dict[str, Tensor], origin: str, seconds: float) -> None:
    metadata = {"origin": origin, "sha256": _digest(tensors), "seconds": f"{seconds:.3f}"}
    try:
        publish(path, lambda partial: save_file(tensors, partial, metadata))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}); free some space, then start again with --resume") from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error
    if _metadata(path).get("sha256") != _digest(tensors):
        raise _damaged(path)
    return tensors


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged; remove it, and the teacher writes the same rows again")
