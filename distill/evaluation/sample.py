"""Drawing samples to be measured: with which sampler, in which precision, from which noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import EvaluateConfig
from distill.evaluation.first_pass import FirstPass
from distill.evaluation.progress import Counter, Watched
from distill.evaluation.texts import Texts
from distill.generation import at_temperature
from distill.runtime.resources import Use, measured
from distill.runtime.world import ALONE, World
from students.adapters import merged
from students.fill import fill_to_length
from students.samplers import LOG_LINEAR, SERVED, Ancestral, Sampler
from students.student import compile_passes
from teachers.canvas import Canvas
from teachers.compilation import clock
from teachers.denoiser import Denoiser, end_ids
from teachers.process import MaskedProcess


@dataclass(frozen=True)
class Samples:
    """N samples on the CPU, passes (N,) of each and their mean, and what sampling took.

    ``log_prob`` is (N,) as of `Filled`, or None. ``length_nfe`` is None where the sampler finds out no length.
    """

    texts: Texts
    log_prob: np.ndarray | None
    row_nfe: np.ndarray
    nfe: float
    critic_nfe: float
    length_nfe: float | None
    use: Use


@torch.no_grad()  # not inference_mode: a guided sampler needs gradients
def draw(
    denoiser: Denoiser,
    config: EvaluateConfig,
    steps: int,
    samples: int,
    length: int,
    seed: int,
    process: MaskedProcess = LOG_LINEAR,
    progress: Counter | None = None,
    critic: nn.Module | None = None,
    world: World = ALONE,
    prompts: Canvas | None = None,
    temperatures: Sequence[float] | None = None,
) -> list[Samples]:
    """Fill canvases with `sampler_of`, ``config.batch`` at a time, on every process of ``world``.

    Args:
        prompts: the canvases, at least ``samples``; None for masks alone, ``length`` to a row.
        temperatures: each fills the canvases anew, in place of the sampler's own; None for that one alone.

    Returns:
        The samples at each temperature. They are those of sampling at that temperature alone, bit for bit; a pass that
        is the same for several is made for the first of them.

    A row's noise is fixed by (seed, steps, its number). So samples depend neither on ``config.batch`` nor on how many
    processes share the work, but for what rounding differs between batches of other sizes, and for `Sampler.by_row`;
    nor on which other temperatures there are. The seconds last until the slowest process is done, and are shared out
    as the temperatures took them.
    """
    network = denoiser if progress is None else Watched(denoiser, progress)
    own = sampler_of(config, critic)
    rules = [own if t == own.temperature else at_temperature(own, t) for t in temperatures or [own.temperature]]
    network = FirstPass(network) if len(rules) > 1 else network

    def fill_batch(rows: range, rule: Sampler) -> _Filled:
        start, before = clock(), denoiser.tally.passes
        randomness = rule.randomness(seed, (steps,), rows, denoiser.device)
        if prompts is None:
            canvas = Canvas.blank(len(rows), length, denoiser.spec.mask_id, denoiser.device)
        else:
            canvas = prompts.rows(slice(rows.start, rows.stop)).to(denoiser.device)
        if isinstance(network, FirstPass):
            network.start()
        out = fill_to_length(network, canvas, rule, steps, randomness, process=process, critic=critic)
        log_prob = None if out.log_prob is None else out.log_prob.cpu()
        return _Filled(
            out.tokens.cpu(), out.nfe.cpu(), int(out.critic_nfe.sum()), out.length_nfe, log_prob,
            clock() - start, denoiser.tally.passes - before,
        )  # fmt: skip

    batches, use = measured(
        world,
        denoiser,
        lambda: world.share(samples, config.batch, lambda rows: [fill_batch(rows, rule) for rule in rules], own.by_row),
    )
    whole = sum(batch.seconds for at_each in batches for batch in at_each)
    first = None if prompts is None else prompts.rows(slice(0, samples))
    return [
        _joined(filled, first, end_ids(denoiser), replace(use, seconds=use.seconds / whole))
        for filled in zip(*batches, strict=True)
    ]


class _Filled(NamedTuple):
    """A batch at one temperature, and the seconds and passes that it took."""

    tokens: Tensor
    nfe: Tensor
    critic_nfe: int
    length_nfe: Tensor | None
    log_prob: Tensor | None
    seconds: float
    passes: int


def _joined(batches: Sequence[_Filled], prompts: Canvas | None, ends: Sequence[int], use: Use) -> Samples:
    """All batches at one temperature; ``use`` is that of all temperatures, its seconds for one of theirs."""
    tokens, nfe, critic_nfe, length_nfe, log_probs, seconds, passes = zip(*batches, strict=True)
    row_nfe = torch.cat(nfe).numpy()
    return Samples(
        texts=Texts.on(prompts, torch.cat(tokens), ends),
        log_prob=None if log_probs[0] is None else torch.cat(log_probs).numpy(),
        row_nfe=row_nfe,
        nfe=float(row_nfe.mean()),
        critic_nfe=sum(critic_nfe) / len(row_nfe),
        length_nfe=None if length_nfe[0] is None else float(torch.cat(length_nfe).double().mean()),
        use=replace(use, seconds=use.seconds * sum(seconds), passes=sum(passes)),
    )


def temperatures_of(config: EvaluateConfig, sampler: Sampler, is_reference: bool) -> tuple[float, ...]:
    """At which temperatures a row is measured, from the lowest to the highest.

    Args:
        sampler: what it is sampled with, whose own temperature is one of them; drawing greedily has no other.
        is_reference: whether it is the teacher's at its many steps, which may have temperatures of its own.
    """
    if sampler.draw == "greedy":
        return (sampler.temperature,)
    if is_reference and config.teacher_temperatures is not None:
        return tuple(sorted(set(config.teacher_temperatures)))
    return tuple(sorted({sampler.temperature, *(config.temperatures or ())}))


def sampler_of(config: EvaluateConfig, critic: nn.Module | None) -> Sampler:
    """``config.sampler``, or ancestral where that asks a critic and there is none."""
    return Ancestral() if config.sampler.needs_critic and critic is None else config.sampler


def many_steps(config: EvaluateConfig, teacher: Denoiser) -> EvaluateConfig:
    """The evaluation of the teacher at ``teacher_steps``, where ``steps`` does not have them: ancestral.

    That is the reverse process itself, so the reference is the same whatever other rule or temperature is tried at few
    steps; where attention is in blocks, and text is written in blocks, that of one block after the other. It is drawn
    as published code does where the samples are; an ancestral sampler stays as it is.
    """
    if config.teacher_steps in config.steps or isinstance(config.sampler, Ancestral):
        return config
    draw = "exact" if config.sampler.draw == "greedy" else config.sampler.draw
    in_blocks = teacher.spec.attention == "block" and config.sampler.block_length is not None
    blocks = config.sampler.model_dump(include={"block_length", "stop", "budget"}) if in_blocks else {}
    return config.model_copy(update={"sampler": Ancestral(draw=draw, **blocks)})


def as_served(config: EvaluateConfig, engine: str, student: Denoiser) -> tuple[EvaluateConfig, int]:
    """The evaluation of a student of block attention as an inference engine samples from it, and with how many steps.

    Texts are written to their end, as those that it is compared with.
    """
    size = student.spec.block_size
    assert size is not None, "engines serve blocks"
    return config.model_copy(update={"sampler": SERVED[engine].model_copy(update={"stop": False})}), size


def at_precision(denoiser: Denoiser, precision: str) -> Denoiser:
    """The denoiser, or a bfloat16 copy of it, compiled if it is. Logits are float32 either way (see `Denoiser.head`).

    A copy has no CUDA graphs: they would be recorded for its weights alone, and keep their memory when it is gone.
    """
    dtype = getattr(torch, precision)
    if dtype == torch.float32 or all(p.dtype == dtype for p in denoiser.parameters()):
        return denoiser
    copied = merged(denoiser, dtype)
    compile_passes(copied, bool(denoiser.compilation))
    return copied
