"""Quality against step count: sample teacher and student at every number of steps, judge the text, count the passes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from distill.config import EvaluateConfig
from distill.evaluation.judge import AnyJudge
from distill.evaluation.metrics import (
    bigram_entropy,
    distinct_2,
    nats_interval,
    perplexity,
    perplexity_interval,
    unigram_entropy,
)
from distill.runtime.progress import progress_bar
from distill.runtime.world import ALONE, World
from students.adapters import merged
from students.fill import fill
from students.samplers import LOG_LINEAR, Ancestral, Sampler
from teachers.canvas import Canvas
from teachers.denoiser import DelegatingDenoiser, Denoiser
from teachers.errors import UserError
from teachers.process import MaskedProcess


@torch.no_grad()  # not inference_mode: a guided sampler needs gradients
def evaluate(
    teacher: Denoiser | None,
    student: Denoiser | None,
    judge: AnyJudge,
    config: EvaluateConfig,
    length: int,
    reference: Tensor | None = None,
    seed: int = 0,
    process: MaskedProcess = LOG_LINEAR,
    critic: nn.Module | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Measure unconditional samples of teacher and student, and real text, all over the same number of tokens.

    The processes of ``world`` share the work, and each returns all figures: those of one process, but for the seconds.

    Args:
        teacher: sampled at ``config.steps``, and as `many_steps` says; None to leave it out.
        student: sampled at ``config.steps``; None to leave it out.
        length: L, tokens of every sample.
        reference: (≥ ``config.samples``, L) held-out real rows; only the first ``config.samples`` are read.
        critic: the student's, for samplers that ask one; the teacher is the reference and goes without.

    Returns:
        What ``evaluation.json`` holds: ``judge``, ``sampling``, ``reference`` (or None) and ``rows``. Entropies in
        nats, ``nfe`` (mean), ``nfe_median`` and ``nfe_p95`` (95th percentile) in passes a sequence, ``seconds`` of
        sampling alone. Where the judge is a Markov source it has its ``source_entropy``, and every row
        ``excess_nats``, its nats above that, both in nats a token. Rows whose sampler knows with which probability it
        drew (`SampleOutput.log_prob`) then have ``divergence_nats`` as well, an unbiased estimate of an upper bound on
        KL(model ‖ source), nats a token: 0 for the source only, never below it for being sharp; see
        `MarkovDenoiser.kl_bound`. Intervals, ``…_ci``, are 95% bootstrap over samples.

    Raises:
        UserError: more steps than tokens, too little real text, or a length that does not fit.
    """
    check(teacher, student, judge, config, length, reference, critic)
    models = {
        name: (at_precision(model, config.precision), asked)
        for name, model, asked in (("teacher", teacher, None), ("student", student, critic))
        if model is not None
    }
    few = sorted(set(config.steps))
    plan = [(name, steps, config) for name in models for steps in few]
    if teacher is not None and config.teacher_steps not in few:
        plan.append(("teacher", config.teacher_steps, many_steps(config)))
    plan.sort(key=lambda part: (part[0] == "student", part[1]))
    rows: list[dict[str, Any]] = []
    with progress_bar() as bar:
        work = sum(config.samples * (min(steps, length) + 1) for _, steps, _ in plan)
        progress = _Counter(bar, work, world.size)
        real = None
        if reference is not None:
            progress.say("real text")
            real = _figures(reference[: config.samples], None, judge, config, seed, world)
        for name, steps, how in plan:
            model, asked = models[name]
            progress.say(f"{name}, {steps} steps")
            drawn = draw(model, how, steps, config.samples, length, seed, process, progress, asked, world)
            progress.say(f"{name}, {steps} steps, judge")
            figures = _figures(drawn.tokens, drawn.log_prob, judge, config, seed, world, progress)
            progress.finish(config.samples * (min(steps, length) + 1))
            median, p95 = np.quantile(drawn.row_nfe, [0.5, 0.95])
            costs = {
                "nfe": drawn.nfe,
                "nfe_median": float(median),
                "nfe_p95": float(p95),
                "critic_nfe": drawn.critic_nfe,
            }
            speed = {"seconds": drawn.seconds, "tokens_per_second": drawn.tokens.numel() / drawn.seconds}
            sampler = sampler_of(how, asked).label
            rows.append({"model": name, "sampler": sampler, "steps": steps, **costs, **figures, **speed})
    device = next(model.device for model, _ in models.values())
    source_entropy = judge.source_entropy(length)
    return {
        "judge": {"name": judge.name, "parameters": judge.parameters, "retokenized": judge.retokenized}
        | ({} if source_entropy is None else {"source_entropy": source_entropy}),
        "sampling": {
            "sampler": config.sampler.name,
            "sampler_settings": config.sampler.model_dump(exclude={"name", "draw"}),
            "draw": config.sampler.draw,
            "precision": config.precision,
            "process": process.schedule,
            "samples": config.samples,
            "length": length,
            "batch": config.batch,
            "seed": seed,
            "bootstrap": config.bootstrap,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": str(torch.__version__),
        },
        "reference": real,
        "rows": rows,
    }


def quick_figures(
    denoiser: Denoiser,
    judge: AnyJudge,
    steps: int,
    samples: int,
    length: int,
    seed: int,
    process: MaskedProcess,
    config: EvaluateConfig,
) -> dict[str, float]:
    """Judge perplexity, unigram and bigram entropy (nats) and distinct-2 of a few samples; for watching a training run.

    With an adaptive sampler, the mean passes a sequence as well, ``nfe``.

    The same seed gives the same noise, so two calls differ by the network alone. Sampling is in the network's own
    precision, and asks no critic.
    """
    drawn = draw(denoiser, config, steps, samples, length, seed, process)
    nats, tokens = _score(drawn.tokens, judge, config, ALONE)
    passes = {"nfe": drawn.nfe} if config.sampler.adaptive else {}
    return {"judge_perplexity": perplexity(nats, tokens), **_diversity(drawn.tokens.numpy()), **passes}


@dataclass(frozen=True)
class Drawn:
    """Samples (N, L) on the CPU, passes (N,) of each and their mean, and the seconds that sampling took.

    ``log_prob`` is (N,) as of `SampleOutput`, or None.
    """

    tokens: Tensor
    log_prob: np.ndarray | None
    row_nfe: np.ndarray
    nfe: float
    critic_nfe: float
    seconds: float


@torch.no_grad()
def draw(
    denoiser: Denoiser,
    config: EvaluateConfig,
    steps: int,
    samples: int,
    length: int,
    seed: int,
    process: MaskedProcess = LOG_LINEAR,
    progress: _Counter | None = None,
    critic: nn.Module | None = None,
    world: World = ALONE,
) -> Drawn:
    """Fill all-masked canvases with `sampler_of`, ``config.batch`` at a time, on every process of ``world``.

    A batch's noise is fixed by (seed, steps, first row), so samples depend on ``config.batch``, and not on how many
    processes share the work. The seconds last until the slowest of them is done.
    """
    network = denoiser if progress is None else _Watched(denoiser, progress)
    sampler = sampler_of(config, critic)

    def batch(rows: range) -> tuple[Tensor, Tensor, int, Tensor | None]:
        noise = np.random.SeedSequence([seed, steps, rows.start]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator(denoiser.device).manual_seed(int(noise))
        canvas = Canvas.blank(len(rows), length, denoiser.spec.mask_id, denoiser.device)
        out = fill(network, canvas, sampler, steps, generator, process=process, critic=critic)
        log_prob = None if out.log_prob is None else out.log_prob.cpu()
        return out.tokens.cpu(), out.nfe.cpu(), int(out.critic_nfe.sum()), log_prob

    world.barrier()
    start = time.perf_counter()
    tokens, nfe, critic_nfe, log_probs = zip(*world.share(samples, config.batch, batch), strict=True)
    seconds = time.perf_counter() - start
    row_nfe = torch.cat(nfe).numpy()
    log_prob = None if log_probs[0] is None else torch.cat(log_probs).numpy()
    return Drawn(torch.cat(tokens), log_prob, row_nfe, float(row_nfe.mean()), sum(critic_nfe) / samples, seconds)


def sampler_of(config: EvaluateConfig, critic: nn.Module | None) -> Sampler:
    """``config.sampler``, or ancestral where that asks a critic and there is none."""
    return Ancestral() if config.sampler.needs_critic and critic is None else config.sampler


def many_steps(config: EvaluateConfig) -> EvaluateConfig:
    """The evaluation of the teacher at ``teacher_steps``, where ``steps`` does not have them: ancestral.

    That is the reverse process itself, so the reference is the same whatever other sampler is tried at few steps; an
    ancestral one keeps its temperature.
    """
    if config.teacher_steps in config.steps or isinstance(config.sampler, Ancestral):
        return config
    return config.model_copy(update={"sampler": Ancestral()})


def at_precision(denoiser: Denoiser, precision: str) -> Denoiser:
    """The denoiser, or a bfloat16 copy of it. Logits are float32 either way (see `Denoiser.head`)."""
    dtype = getattr(torch, precision)
    if dtype == torch.float32 or all(p.dtype == dtype for p in denoiser.parameters()):
        return denoiser
    return merged(denoiser, dtype)


def check(
    teacher: Denoiser | None,
    student: Denoiser | None,
    judge: AnyJudge,
    config: EvaluateConfig,
    length: int,
    reference: Tensor | None,
    critic: nn.Module | None = None,
) -> None:
    """Refuse what `evaluate` can not measure, before anything is sampled."""
    config.sampler.check(critic)
    models = [model for model in (teacher, student) if model is not None]
    if not models:
        raise UserError("there is no model to evaluate; give a run, a student or a teacher")
    if len({(model.spec.vocabulary, model.spec.mask_id) for model in models}) > 1:
        raise UserError(
            f"teacher and student have {teacher.spec.vocabulary} and {student.spec.vocabulary} tokens, masks "  # type: ignore[union-attr]
            f"{teacher.spec.mask_id} and {student.spec.mask_id}; give a student that was made from this teacher"  # type: ignore[union-attr]
        )
    check_length(models, length)
    if max(config.steps) > length:
        raise UserError(
            f"evaluate.steps has {max(config.steps)}, more steps than the {length} tokens of a sample; "
            f"leave out steps above {length} (teacher_steps may exceed it)"
        )
    if not judge.retokenized and length > judge.max_length:
        raise UserError(
            f"samples have {length} tokens but judge {judge.name!r} reads at most {judge.max_length}; "
            "set a smaller evaluate.length, or a judge with a longer context"
        )
    if reference is not None and len(reference) < config.samples:
        raise UserError(
            f"evaluate.samples is {config.samples} but the held-out text has {len(reference)} rows of {length} tokens, "
            f"not as many; set evaluate.samples={len(reference)} or fewer, or give more text in evaluate.data"
        )
    if reference is not None and reference.shape[1] != length:
        raise UserError(
            f"held-out rows have {reference.shape[1]} tokens, samples {length}; give rows of {length} tokens"
        )


def check_length(models: Sequence[Denoiser], length: int) -> None:
    """Refuse rows that are longer than one of the models takes."""
    context = min(model.spec.max_length for model in models)
    if length > context:
        raise UserError(f"evaluate.length is {length} but the model takes at most {context} tokens; set a smaller one")


def _figures(
    rows: Tensor,
    log_prob: np.ndarray | None,
    judge: AnyJudge,
    config: EvaluateConfig,
    seed: int,
    world: World,
    progress: _Counter | None = None,
) -> dict[str, Any]:
    nats, tokens = _score(rows, judge, config, world, progress)
    value, interval = perplexity(nats, tokens), list(perplexity_interval(nats, tokens, config.bootstrap, seed))
    exact: dict[str, Any] = {}
    if (entropy := judge.source_entropy(rows.shape[1])) is not None:
        exact["excess_nats"] = math.log(value) - entropy
        exact["excess_nats_ci"] = [math.log(end) - entropy for end in interval]
        if log_prob is not None:
            gaps = log_prob + nats
            exact["divergence_nats"] = float(gaps.sum() / tokens.sum())
            exact["divergence_nats_ci"] = list(nats_interval(gaps, tokens, config.bootstrap, seed))
    return {
        "samples": len(rows),
        "judge_perplexity": value,
        "judge_perplexity_ci": interval,
        **exact,
        **_diversity(rows.numpy()),
    }


def _score(
    rows: Tensor, judge: AnyJudge, config: EvaluateConfig, world: World, progress: _Counter | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """See `Judge.score`; a batch at a time, as the rows were drawn."""
    advance = None if progress is None else progress.advance
    parts = world.share(len(rows), config.batch, lambda batch: judge.score(rows[batch.start : batch.stop], advance))
    nats, tokens = zip(*parts, strict=True)
    return np.concatenate(nats), np.concatenate(tokens)


def _diversity(rows: np.ndarray) -> dict[str, float]:
    return {
        "unigram_entropy": unigram_entropy(rows),
        "bigram_entropy": bigram_entropy(rows),
        "distinct_2": distinct_2(rows),
    }


class _Counter:
    """One bar over a whole evaluation, in rows that went through a network, here and on the other processes alike."""

    def __init__(self, bar: Progress, total: int, processes: int):
        self.bar, self.done, self.processes = bar, 0, processes
        self.task = bar.add_task("evaluating", total=total, note="")

    def say(self, what: str) -> None:
        self.bar.update(self.task, note=what)

    def advance(self, rows: int) -> None:
        self.bar.advance(self.task, rows * self.processes)

    def finish(self, expected: int) -> None:
        """Count a part as done: it was planned before its real number of passes was known."""
        self.done += expected
        self.bar.update(self.task, completed=self.done)


class _Watched(DelegatingDenoiser):
    """A denoiser whose passes move the bar."""

    def __init__(self, inner: Denoiser, progress: _Counter):
        super().__init__(inner)
        self.progress = progress

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        self.progress.advance(len(canvas))
        return self.inner.features(canvas, select)
