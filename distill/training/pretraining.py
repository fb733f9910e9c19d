"""A masked-diffusion teacher or an autoregressive judge, from text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from distill.config import PretrainConfig
from distill.config.deepspeed import deepspeed_section
from distill.data.batches import Data, load_data, training_batch
from distill.data.tokenizers import load_tokenizer, train_tokenizer
from distill.models import tail_of
from distill.runtime.messages import say
from distill.runtime.progress import track
from distill.runtime.run_folder import RunFolder
from distill.runtime.world import start_world
from distill.training.account import Account
from distill.training.engine import check_flex_attention, micro_batch
from distill.training.loop import train
from distill.training.opening import create_run, leave, open_run
from objectives.elbo import Autoregressive, MaskedElbo
from objectives.masking import MasksConfig
from objectives.objective import Objective
from teachers.convert import converted
from teachers.denoiser import Denoiser, DenoiserSpec
from teachers.families.stock.loading import create_denoiser
from teachers.families.stock.trial import check_denoiser
from teachers.files import publish
from teachers.process import MaskedProcess
from teachers.randomness import RowStreams
from teachers.vocabulary import gaps_of, rows_for, set_mask, token_id


def from_text(
    config: PretrainConfig, run_path: str | Path, resume: bool = False, allow_changes: bool = False
) -> tuple[Path, dict[str, float] | None]:
    """Train a model from text and save it, with its tokenizer, as ``RUN/model``.

    Everything that can be wrong with the input is found before the folder is made.

    Args:
        allow_changes: resume although config or data differ from what the run was started with.

    Returns:
        The model folder; and what was measured on held-out text, on the main process.

    Raises:
        UserError, RunError, SystemExit: see `distill.training.distillation.in_run_folder`.
    """
    world = start_world()
    micro_batch(config.train, world, config.group)
    check_flex_attention(config.train, world)
    run = RunFolder(run_path)
    config = open_run(run, config, world, resume, allow_changes)
    account = Account(world, config.train.seed)
    tokenizer = world.on_main(lambda: tokenizer_of(config, run))
    if config.data.heldout:
        corpus, heldout = (load_data(config.data, tokenizer, p) for p in (config.data.path, config.data.heldout))
    else:
        corpus, heldout = load_data(config.data, tokenizer).split(config.data.heldout_fraction)
    torch.manual_seed(config.train.seed)
    denoiser = new_denoiser(config, tokenizer).to(world.device)
    create_run(run, config, tokenizer, world, resume)
    account.keep_in(run, resume)
    say(f"{sum(p.numel() for p in denoiser.parameters()):,} parameters, {len(corpus.tokens):,} tokens")
    process = MaskedProcess(config.process)
    elbo = config.objective == "elbo"
    tail = tail_of(config.data, denoiser, denoiser.spec.eos_id)
    objective = (
        MaskedElbo(denoiser, process, config.edit, config.masks, tail) if elbo else Autoregressive(denoiser, tail)
    )

    def watch(update: int, average: Denoiser | None, state: dict[str, Any]) -> tuple[dict[str, float], bool, None]:
        figures = held_out_figures(config, average, heldout, process) if average is not None else None
        figures = world.broadcast(figures)
        best = figures["heldout_nats"] < state.get("heldout_nats", math.inf)
        if best:
            state["heldout_nats"] = figures["heldout_nats"]
        return figures, best, None

    deepspeed = deepspeed_section(config.deepspeed, world.size)
    outcome = train(
        objective, {"student": config.train.student}, corpus, config.train, deepspeed, run, world,
        config.data.length, resume, watch, config.train.checkpoint_every, None if allow_changes else corpus.identity(),
        account=account,
    )  # fmt: skip
    folder = run.path / "model"
    if outcome.preempted:
        leave(run, world, outcome)
    figures = None
    if outcome.average is not None:
        outcome.average.save(folder)
        tokenizer.save_pretrained(folder)
        figures = held_out_figures(config, outcome.average, heldout, process, rows=1024)
        publish(run.path / "heldout.json", json.dumps(figures, indent=1))
    leave(run, world, outcome)
    return folder, figures


def tokenizer_of(config: PretrainConfig, run: RunFolder) -> PreTrainedTokenizerBase:
    """The run's own tokenizer when it is continued, else the one that the config names, else that of the model to
    convert, else a new one; with a mask token.

    Raises:
        UserError: see `load_tokenizer` and `set_mask`.
    """
    path = str(run.tokenizer) if run.tokenizer.exists() else config.tokenizer.path or config.model.init
    tokenizer = load_tokenizer(path) if path else train_tokenizer(config.tokenizer, config.data)
    set_mask(tokenizer, config.tokenizer.mask)
    return tokenizer


def new_denoiser(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Denoiser:
    """Build the network to train: from scratch, or converted from another model."""
    autoregressive = config.objective == "autoregressive"
    mask_id = token_id(tokenizer, "mask")
    assert mask_id is not None, "it has been given one"
    spec = DenoiserSpec(
        mask_id=mask_id,
        vocabulary=rows_for(tokenizer),
        max_length=config.data.length,
        eos_id=token_id(tokenizer, "eos"),
        pad_id=token_id(tokenizer, "pad"),
        shift=autoregressive or config.model.shift,
        attention="causal" if autoregressive else config.model.attention,
        block_size=config.model.block_size,
        gaps=gaps_of(tokenizer, rows_for(tokenizer), mask_id),
    )
    if config.model.init is None:
        denoiser = create_denoiser(config.model.type, config.model.shape, spec)
        check_denoiser(denoiser, config.model.type)
        return denoiser
    return converted(config.model.init, tokenizer, spec, in_context(config))


def in_context(config: PretrainConfig) -> bool:
    """Whether tokens look at what a `Context` says in training, and not all at all."""
    masks = config.masks
    return masks.documents or masks.anneal is not None or config.model.attention == "block"


@torch.no_grad()
def held_out_figures(
    config: PretrainConfig, average: Denoiser, heldout: Data, process: MaskedProcess, rows: int = 256
) -> dict[str, float]:
    """Nats a token and bits per byte of the averaged model on held-out rows: the ELBO bound, or exact for a judge.

    Read as the finished model will be: with its own attention and block size, and its documents apart if it learned so.
    """
    masks = MasksConfig(documents=config.masks.documents)
    elbo = config.objective == "elbo"
    tail = tail_of(config.data, average, average.spec.eos_id)
    objective: Objective
    objective = MaskedElbo(average, process, masks=masks, tail=tail) if elbo else Autoregressive(average, tail)
    rows = min(rows, heldout.rows) // 2 * 2 or 2
    total, count = 0.0, 0.0
    for start in track(range(0, rows, 32), "held-out text", total=math.ceil(rows / 32)):
        part = range(start, min(start + 32, rows))
        batch = training_batch(heldout, 0, part, config.data.length, average.spec.mask_id, average.device)
        rollout = objective.rollout(batch, RowStreams(1, (0,), part, average.device))
        total += float(objective.loss("student", rollout).sum)
        count += float(objective.count("student", rollout))
    nats = total / count
    return {
        "heldout_nats": nats,
        "bits_per_byte": nats / math.log(2) / heldout.bytes_per_token,
        "heldout_tokens": int(count),
    }
