"""Quality against step count: sample teacher and student at every number of steps, judge the text, count the passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import EvaluateConfig
from distill.config.protocols import PROTOCOLS
from distill.evaluation.checks import check
from distill.evaluation.figures.gauges import Gauges
from distill.evaluation.frontier import Resampled, Scores, frontiers
from distill.evaluation.judge import AnyJudge
from distill.evaluation.metrics import (
    bigram_entropy,
    bigrams_without_each,
    distinct_2,
    jackknife_interval,
    mean_interval,
    nats_a_token,
    perplexity,
    quantiles,
    resamples,
    sample_bigrams,
    unigram_entropies,
    unigram_entropy,
)
from distill.evaluation.parts import Part, cheapest_first, parts_of, published_parts, served_parts
from distill.evaluation.progress import Counter
from distill.evaluation.results import Evaluation, Figures, Interval, JudgeDescription, Protocol, Row, Sampling
from distill.evaluation.sample import Samples, draw
from distill.evaluation.texts import Texts
from distill.runtime.progress import progress_bar
from distill.runtime.resources import device_name
from distill.runtime.world import ALONE, World
from students.samplers import LOG_LINEAR
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, end_ids
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
    prompts: Canvas | None = None,
    served: bool = False,
    gauges: Gauges | None = None,
    tell: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Measure samples of teacher and student, and real text: over the same number of tokens, or after the same prompts.

    After prompts, all figures are of what was written up to its first end-of-text token, and a perplexity is given the
    prompt.

    The processes of ``world`` share the work, and each returns all figures: those of one process, but for the seconds.

    Args:
        teacher: sampled at ``config.steps``, and as `many_steps` says; None to leave it out.
        student: sampled at ``config.steps``; None to leave it out. Each at the temperatures of `temperatures_of`.
        length: L, tokens of every sample.
        reference: (≥ ``config.samples``, L) held-out real rows; only the first ``config.samples`` are read. With
            prompts there may be fewer, and they are those of the first ones.
        prompts: ``config.samples`` canvases to write on; None for masks alone.
        critic: the student's, for samplers that ask one; the teacher is the reference and goes without.
        served: whether a student is also measured as inference engines sample from it, where these can serve it.
        gauges: what texts are measured with beside the judge; None for what needs nothing else.
        tell: called, on every process, with what is known before rows that take longer than all before them together.
            Rows of few passes are sampled first.

    Raises:
        UserError: more steps than tokens, fewer than blocks, too little real text, or a length that does not fit.
    """
    check(teacher, student, judge, config, length, reference, critic, prompts)
    parts = parts_of(teacher, student, config, critic)
    parts += served_parts(student, config) if served and student is not None else []
    parts += published_parts(parts, config)
    gauges = Gauges(end_ids(parts[0].denoiser), seed=seed) if gauges is None else gauges
    counts = sorted({part.config.samples for part in parts})
    weights = {count: resamples(count, config.bootstrap, seed) for count in counts}
    measured: dict[int, list[tuple[Part, Row, Resampled]]] = {}
    real, real_resampled = None, dict[int, Resampled]()

    def known() -> Evaluation:
        rows = [row for number in sorted(measured) for row in measured[number]]
        own = [(row, resampled) for part, row, resampled in rows if part.kind == "own"]
        return Evaluation(
            judge=JudgeDescription(judge.name, judge.parameters, judge.retokenized, judge.source_entropy(length)),
            sampling=replace(
                _sampling(config, length, seed, process, parts[0].denoiser.device, prompts is not None),
                teacher_samples=counts[0] if len(counts) > 1 else None,
            ),
            reference=real,
            rows=tuple(row for row, _ in own),
            served=tuple(row for part, row, _ in rows if part.kind == "served") or None,
            frontier=frontiers(own, real_resampled, config.teacher_steps) if real_resampled else None,
            instruments=gauges.instruments(config.samples),
            protocol=_protocol(config),
            published=tuple(row for part, row, _ in rows if part.kind == "published") or None,
        )

    with progress_bar() as bar:
        progress = Counter(bar, sum(part.passes(length) for part in parts), world.size)
        if reference is not None:
            progress.say("real text")
            texts = real_texts(reference[: config.samples], prompts, parts[0].denoiser)
            scores = _score(texts, judge, config, world)
            here = len(texts.tokens)  # after prompts there may be fewer
            fewer = weights if here == config.samples else {here: resamples(here, config.bootstrap, seed)}
            resampled = {count: Resampled.of(scores, _padded(fewer[count], here)) for count in fewer}
            real_resampled = {count: resampled.get(count, resampled[here]) for count in counts}
            figures = _figures(texts, scores, resampled[here], judge)
            real = Figures(**figures, **gauges.figures(texts, distances=gauges.apart))
        for number in cheapest_first(parts, length):
            part = parts[number]
            if tell is not None and 0 < progress.done < part.passes(length):
                bar.stop()
                tell(known())
                bar.start()
            progress.say(f"{part.name}, {part.steps} steps")
            drawn = draw(
                part.denoiser, part.config, part.steps, part.config.samples, length, seed, process, progress,
                part.critic, world, prompts, part.temperatures,
            )  # fmt: skip
            progress.say(f"{part.name}, {part.steps} steps, judge")
            measured[number], whole = [], part.config.samples == config.samples
            for temperature, samples in zip(part.temperatures, drawn, strict=True):
                scores = _score(samples.texts, judge, part.config, world, progress)
                resampled = Resampled.of(scores, weights[part.config.samples])
                figures = _figures(samples.texts, scores, resampled, judge)
                if samples.log_prob is not None and judge.source_entropy(length) is not None:
                    figures |= _divergence(samples.log_prob + scores.nats, scores.tokens, weights[part.config.samples])
                # how far fewer texts are from real ones is no figure to compare
                distances = whole and temperature == part.sampler.temperature
                figures |= gauges.figures(samples.texts, distances=distances)
                measured[number].append((part, _row(part, temperature, samples, figures), resampled))
            progress.finish(part.passes(length))
    return known()


def _padded(weights: np.ndarray, count: int) -> np.ndarray:
    """(S, N) weights of the first N of ``count`` texts → (S, count), 0 of the others."""
    return np.pad(weights, ((0, 0), (0, count - weights.shape[1])))


def _protocol(config: EvaluateConfig) -> Protocol | None:
    if config.protocol is None:
        return None
    how = PROTOCOLS[config.protocol]
    return Protocol(name=config.protocol, judge=how.judge, end_of_text=how.end_of_text, source=how.source)


def _row(part: Part, temperature: float, samples: Samples, figures: dict[str, Any]) -> Row:
    median, p95 = np.quantile(samples.row_nfe, [0.5, 0.95])
    return Row(
        model=part.name,
        sampler=part.sampler.rule_label,
        steps=part.steps,
        nfe=samples.nfe,
        nfe_ci=mean_interval(samples.row_nfe),
        nfe_median=float(median),
        nfe_p95=float(p95),
        critic_nfe=samples.critic_nfe,
        length_nfe=samples.length_nfe,
        **figures,
        temperature=None if part.sampler.draw == "greedy" else temperature,
        tokens_per_second=samples.texts.size / samples.use.seconds,
        **asdict(samples.use),
    )


def _sampling(
    config: EvaluateConfig, length: int, seed: int, process: MaskedProcess, device: torch.device, prompted: bool
) -> Sampling:
    return Sampling(
        sampler=config.sampler.name,
        sampler_settings=config.sampler.model_dump(exclude={"name", "draw"}),
        draw=config.sampler.draw,
        precision=config.precision,
        process=process.schedule,
        samples=config.samples,
        length=length,
        batch=config.batch,
        seed=seed,
        bootstrap=config.bootstrap,
        device=device_name(device),
        torch=str(torch.__version__),
        prompted=prompted or None,
    )


def quick_figures(
    denoiser: Denoiser,
    judge: AnyJudge,
    steps: int,
    samples: int,
    length: int,
    seed: int,
    process: MaskedProcess,
    config: EvaluateConfig,
    prompts: Canvas | None = None,
    temperatures: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """Judge perplexity, unigram and bigram entropy (nats) and distinct-2 of a few samples; for watching a training run.

    They are those at each of ``temperatures``, or at the sampler's own alone. With an adaptive sampler, the mean passes
    a sequence are there as well, ``nfe``.

    The same seed gives the same noise, so two calls differ by the network alone. Sampling is in the network's own
    precision, and asks no critic.
    """
    out = []
    at_each = draw(denoiser, config, steps, samples, length, seed, process, prompts=prompts, temperatures=temperatures)
    for drawn in at_each:
        scores = _score(drawn.texts, judge, config, ALONE)
        passes = {"nfe": drawn.nfe} if config.sampler.adaptive else {}
        out.append({"judge_perplexity": perplexity(scores.nats, scores.tokens), **_diversity(drawn.texts), **passes})
    return out


def real_texts(reference: Tensor, prompts: Canvas | None, denoiser: Denoiser) -> Texts:
    """Held-out real rows, of which after prompts their completions are measured."""
    first = None if prompts is None else prompts.rows(slice(0, len(reference)))
    return Texts.on(first, reference, end_ids(denoiser))


def _figures(texts: Texts, scores: Scores, resampled: Resampled, judge: AnyJudge) -> dict[str, Any]:
    """The fields of `Figures` that need no instrument beside the judge, and no law of the samples."""
    value, (low, high) = perplexity(scores.nats, scores.tokens), quantiles(resampled.log_perplexity[1:])
    interval = math.exp(low), math.exp(high)
    exact: dict[str, Any] = {}
    if (entropy := judge.source_entropy(texts.tokens.shape[1])) is not None:
        exact["excess_nats"] = math.log(value) - entropy
        exact["excess_nats_ci"] = low - entropy, high - entropy
    return {
        "samples": len(texts.tokens),
        "judge_perplexity": value,
        "judge_perplexity_ci": interval,
        **exact,
        **_diversity(texts),
        **_diversity_intervals(texts),
        "judge_unigram_entropy": float(scores.unigram.mean()) if judge.retokenized else None,
    }


def _divergence(gaps: np.ndarray, tokens: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """How far the samples' law is from the judge's: (N,) differences of their log-probabilities over (N,) tokens."""
    return {
        "divergence_nats": float(gaps.sum() / tokens.sum()),
        "divergence_nats_ci": quantiles(nats_a_token(gaps, tokens, weights)[1:]),
    }


def _score(
    texts: Texts, judge: AnyJudge, config: EvaluateConfig, world: World, progress: Counter | None = None
) -> Scores:
    """See `Judge.score`; a batch at a time, as the rows were drawn."""
    advance = None if progress is None else progress.advance

    def score(batch: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = texts.rows(slice(batch.start, batch.stop))
        return judge.score(part.tokens, advance, part.written, config.end_of_text)

    parts = world.share(len(texts.tokens), config.batch, score)
    nats, tokens, entropies = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Scores(nats, tokens, entropies, sample_bigrams(*_arrays(texts)))


def _diversity(texts: Texts) -> dict[str, float]:
    rows, written = _arrays(texts)
    return {
        "unigram_entropy": unigram_entropy(rows, written),
        "bigram_entropy": bigram_entropy(rows, written),
        "distinct_2": distinct_2(rows, written),
    }


def _diversity_intervals(texts: Texts) -> dict[str, Interval]:
    rows, written = _arrays(texts)
    entropies, shares = bigrams_without_each(rows, written)
    return {
        "unigram_entropy_ci": mean_interval(unigram_entropies(rows, written)),
        "bigram_entropy_ci": jackknife_interval(bigram_entropy(rows, written), entropies),
        "distinct_2_ci": jackknife_interval(distinct_2(rows, written), shares),
    }


def _arrays(texts: Texts) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens, and which of them are measured."""
    return texts.tokens.numpy(), None if texts.written is None else texts.written.numpy()
