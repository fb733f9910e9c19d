"""Quality against step count: sample teacher and student at every number of steps, judge the text, count the passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import EvaluateConfig
from distill.config.protocols import PROTOCOLS
from distill.evaluation.figures.gauges import Gauges
from distill.evaluation.frontier import Resampled, Scores, frontiers, resamples
from distill.evaluation.judge import AnyJudge, ExactJudge, Judge
from distill.evaluation.metrics import (
    bigram_entropy,
    bigrams_without_each,
    distinct_2,
    jackknife_interval,
    mean_interval,
    nats_interval,
    perplexity,
    perplexity_interval,
    sample_bigrams,
    unigram_entropies,
    unigram_entropy,
)
from distill.evaluation.progress import Counter
from distill.evaluation.results import Evaluation, Figures, Interval, JudgeDescription, Protocol, Row, Sampling
from distill.evaluation.sample import Samples, as_served, at_precision, draw, many_steps, sampler_of, temperatures_of
from distill.evaluation.texts import Texts
from distill.runtime.progress import progress_bar
from distill.runtime.resources import device_name
from distill.runtime.world import ALONE, World
from students.samplers import LOG_LINEAR, SERVED, Sampler
from teachers.canvas import Canvas
from teachers.denoiser import Denoiser, end_ids
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
    prompts: Canvas | None = None,
    served: bool = False,
    gauges: Gauges | None = None,
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

    Raises:
        UserError: more steps than tokens, fewer than blocks, too little real text, or a length that does not fit.
    """
    check(teacher, student, judge, config, length, reference, critic, prompts)
    parts = _parts(teacher, student, config, critic)
    parts += _served(student, config) if served and student is not None else []
    parts += _published(parts, config)
    gauges = Gauges(end_ids(parts[0].denoiser), seed=seed) if gauges is None else gauges
    weights = resamples(config.samples, config.bootstrap, seed)
    measured: list[tuple[_Part, Row, Resampled]] = []
    with progress_bar() as bar:
        progress = Counter(bar, sum(part.passes(length) for part in parts), world.size)
        real, real_resampled = None, None
        if reference is not None:
            progress.say("real text")
            texts = real_texts(reference[: config.samples], prompts, parts[0].denoiser)
            scores = _score(texts, judge, config, world)
            figures = _figures(texts, scores, None, judge, config, seed)
            real = Figures(**figures, **gauges.figures(texts, distances=gauges.apart))
            same = len(texts.tokens) == config.samples  # after prompts there may be fewer
            real_weights = weights if same else resamples(len(texts.tokens), config.bootstrap, seed)
            real_resampled = Resampled.of(scores, real_weights)
        for part in parts:
            progress.say(f"{part.name}, {part.steps} steps")
            drawn = draw(
                part.denoiser, part.config, part.steps, config.samples, length, seed, process, progress, part.critic,
                world, prompts, part.temperatures,
            )  # fmt: skip
            progress.say(f"{part.name}, {part.steps} steps, judge")
            for temperature, samples in zip(part.temperatures, drawn, strict=True):
                scores = _score(samples.texts, judge, part.config, world, progress)
                figures = _figures(samples.texts, scores, samples.log_prob, judge, config, seed)
                figures |= gauges.figures(samples.texts, distances=temperature == part.sampler.temperature)
                measured.append((part, _row(part, temperature, samples, figures), Resampled.of(scores, weights)))
            progress.finish(part.passes(length))
    own = [(row, resampled) for part, row, resampled in measured if part.kind == "own"]
    return Evaluation(
        judge=JudgeDescription(judge.name, judge.parameters, judge.retokenized, judge.source_entropy(length)),
        sampling=_sampling(config, length, seed, process, parts[0].denoiser.device, prompts is not None),
        reference=real,
        rows=tuple(row for row, _ in own),
        served=tuple(row for part, row, _ in measured if part.kind == "served") or None,
        frontier=None if real_resampled is None else frontiers(own, real_resampled, config.teacher_steps),
        instruments=gauges.instruments(config.samples),
        protocol=_protocol(config),
        published=tuple(row for part, row, _ in measured if part.kind == "published") or None,
    )


@dataclass(frozen=True)
class _Part:
    """A model to be sampled at one number of steps, in the precision to do so, and how; or an engine's name for it.

    Attributes:
        temperatures: each makes a row.
        kind: of the rows: the evaluation's own, as an engine serves, or as a paper measures.
    """

    name: str
    denoiser: Denoiser
    critic: nn.Module | None
    steps: int
    config: EvaluateConfig
    temperatures: tuple[float, ...]
    kind: Literal["own", "served", "published"] = "own"

    def passes(self, length: int) -> int:
        """The most rows that may go through a network, the judge's included."""
        return len(self.temperatures) * self.config.samples * (self.sampler.most_passes(length, self.steps) + 1)

    @property
    def sampler(self) -> Sampler:
        """Fitted to the model."""
        return sampler_of(self.config, self.critic).fitted(self.denoiser)


def _parts(
    teacher: Denoiser | None, student: Denoiser | None, config: EvaluateConfig, critic: nn.Module | None
) -> list[_Part]:
    """What `evaluate` samples, in the order of its rows."""
    parts = []
    for name, model, asked in (("teacher", teacher, None), ("student", student, critic)):
        if model is None:
            continue
        denoiser = at_precision(model, config.precision)
        settings = dict.fromkeys(config.steps, config)
        if name == "teacher":
            settings.setdefault(config.teacher_steps, many_steps(config, denoiser))
        for steps in sorted(settings):
            how, is_reference = settings[steps], name == "teacher" and steps not in config.steps
            temperatures = temperatures_of(config, sampler_of(how, asked), is_reference)
            parts.append(_Part(name, denoiser, asked, steps, how, temperatures))
    return parts


def _served(student: Denoiser, config: EvaluateConfig) -> list[_Part]:
    """A student as inference engines sample from it: those serve blocks of attention, without a shift or a time."""
    spec = student.spec
    if spec.attention != "block" or spec.shift or spec.time_conditioned:
        return []
    settings = {engine: as_served(config, engine, student) for engine in SERVED}
    denoiser = at_precision(student, config.precision)
    return [
        _Part(engine, denoiser, None, steps, how, (how.sampler.temperature,), "served")
        for engine, (how, steps) in settings.items()
    ]


def _published(parts: Sequence[_Part], config: EvaluateConfig) -> list[_Part]:
    """The evaluation's own parts once more, at one temperature and as ``config.protocol`` samples and judges."""
    if config.protocol is None:
        return []
    how, published = PROTOCOLS[config.protocol], []
    for part in parts:
        if part.kind == "own":
            sampler = part.config.sampler if how.sampler is None else how.sampler
            changed = part.config.model_copy(update={"sampler": sampler, "end_of_text": how.end_of_text})
            published.append(replace(part, config=changed, temperatures=(sampler.temperature,), kind="published"))
    return published


def _protocol(config: EvaluateConfig) -> Protocol | None:
    if config.protocol is None:
        return None
    how = PROTOCOLS[config.protocol]
    return Protocol(name=config.protocol, judge=how.judge, end_of_text=how.end_of_text, source=how.source)


def _row(part: _Part, temperature: float, samples: Samples, figures: dict[str, Any]) -> Row:
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
) -> dict[str, float]:
    """Judge perplexity, unigram and bigram entropy (nats) and distinct-2 of a few samples; for watching a training run.

    With an adaptive sampler, the mean passes a sequence as well, ``nfe``.

    The same seed gives the same noise, so two calls differ by the network alone. Sampling is in the network's own
    precision, and asks no critic.
    """
    [drawn] = draw(denoiser, config, steps, samples, length, seed, process, prompts=prompts)
    scores = _score(drawn.texts, judge, config, ALONE)
    passes = {"nfe": drawn.nfe} if config.sampler.adaptive else {}
    return {"judge_perplexity": perplexity(scores.nats, scores.tokens), **_diversity(drawn.texts), **passes}


def check(
    teacher: Denoiser | None,
    student: Denoiser | None,
    judge: AnyJudge,
    config: EvaluateConfig,
    length: int,
    reference: Tensor | None,
    critic: nn.Module | None = None,
    prompts: Canvas | None = None,
) -> None:
    """Refuse what `evaluate` can not measure, before anything is sampled."""
    config.sampler.check(critic)
    models = [model for model in (teacher, student) if model is not None]
    if not models:
        raise UserError("there is no model to evaluate; give a run, a student or a teacher")
    if teacher is not None and student is not None:
        check_same_tokens(teacher, student)
    check_length(models, length)
    named = {"teacher": teacher, "student": student}
    _check_steps({name: m for name, m in named.items() if m is not None}, config, length, critic, prompts)
    if not judge.retokenized and length > judge.max_length:
        raise UserError(
            f"samples have {length} tokens but judge {judge.name!r} reads at most {judge.max_length}; "
            "set a smaller evaluate.length, or a judge with a longer context"
        )
    _check_protocol(models, judge, config)
    if prompts is not None:
        check_judge(judge)
    elif reference is not None:
        _check_reference(reference, config.samples, length)


def _check_protocol(models: Sequence[Denoiser], judge: AnyJudge, config: EvaluateConfig) -> None:
    protocol = None if config.protocol is None else PROTOCOLS[config.protocol]
    ends = config.end_of_text if protocol is None else protocol.end_of_text
    if ends == "first" and isinstance(judge, ExactJudge):
        raise UserError(
            f"judge {judge.name!r} is an exact source, which scores whole rows, and here only the first end-of-text "
            "token of a text counts; set evaluate.end_of_text=all and no protocol, or an autoregressive judge"
        )
    if protocol is not None and protocol.sampler is not None:
        for model in models:
            protocol.sampler.suited(model)


def _check_steps(
    models: dict[str, Denoiser], config: EvaluateConfig, length: int, critic: nn.Module | None, prompts: Canvas | None
) -> None:
    for name, model in models.items():
        sampler = sampler_of(config, critic).suited(model)
        most = sampler.steps_between(length)[1]
        if max(config.steps) > most:
            what = "sample" if sampler.budget == "text" else "block"
            raise UserError(
                f"evaluate.steps has {max(config.steps)}, more steps than the {most} tokens of a {what}; "
                f"leave out steps above {most} (teacher_steps may exceed it)"
            )
        _check_fewest("steps", min(config.steps), sampler, model, length, prompts)
        if name == "teacher":
            many = many_steps(config, model).sampler.fitted(model)
            _check_fewest("teacher_steps", config.teacher_steps, many, model, length, prompts)


def _check_fewest(key: str, steps: int, sampler: Sampler, model: Denoiser, length: int, prompts: Canvas | None) -> None:
    fewest = sampler.steps_between(length)[0] if prompts is None else sampler.fewest_steps(prompts, model)
    if steps < fewest:
        raise UserError(
            f"evaluate.{key} has {steps}, fewer steps than the {fewest} blocks of {sampler.block_length} tokens of a "
            f"sample; set it to {fewest} or more, or sampler.budget=block, which counts the steps of each block"
        )


def check_judge(judge: AnyJudge) -> None:
    """Refuse a judge that can not score what is written after prompts."""
    if isinstance(judge, ExactJudge):
        raise UserError(
            f"judge {judge.name!r} is an exact source, which scores whole rows and not what follows a prompt; set "
            "evaluate.judge to an autoregressive model"
        )


def real_texts(reference: Tensor, prompts: Canvas | None, denoiser: Denoiser) -> Texts:
    """Held-out real rows, of which after prompts their completions are measured."""
    first = None if prompts is None else prompts.rows(slice(0, len(reference)))
    return Texts.on(first, reference, end_ids(denoiser))


def check_same_tokens(teacher: Denoiser, student: Denoiser) -> None:
    """Refuse two models of which one does not write the other's tokens."""
    theirs, ours = teacher.spec, student.spec
    if (theirs.vocabulary, theirs.mask_id) != (ours.vocabulary, ours.mask_id):
        raise UserError(
            f"teacher and student have {theirs.vocabulary} and {ours.vocabulary} tokens, masks "
            f"{theirs.mask_id} and {ours.mask_id}; give a student that was made from this teacher"
        )


def check_length(models: Sequence[Denoiser], length: int) -> None:
    """Refuse rows that are longer than one of the models takes."""
    context = min(model.spec.max_length for model in models)
    if length > context:
        raise UserError(f"evaluate.length is {length} but the model takes at most {context} tokens; set a smaller one")


def _check_reference(reference: Tensor, samples: int, length: int) -> None:
    if len(reference) < samples:
        raise UserError(
            f"evaluate.samples is {samples} but the held-out text has {len(reference)} rows of {length} tokens, "
            f"not as many; set evaluate.samples={len(reference)} or fewer, or give more text in evaluate.data"
        )
    if reference.shape[1] != length:
        raise UserError(
            f"held-out rows have {reference.shape[1]} tokens, samples {length}; give rows of {length} tokens"
        )


def _figures(
    texts: Texts,
    scores: Scores,
    log_prob: np.ndarray | None,
    judge: AnyJudge,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    """The fields of `Figures`."""
    nats, tokens = scores.nats, scores.tokens
    value, interval = perplexity(nats, tokens), perplexity_interval(nats, tokens, config.bootstrap, seed)
    exact: dict[str, Any] = {}
    if (entropy := judge.source_entropy(texts.tokens.shape[1])) is not None:
        exact["excess_nats"] = math.log(value) - entropy
        exact["excess_nats_ci"] = tuple(math.log(end) - entropy for end in interval)
        if log_prob is not None:
            gaps = log_prob + nats
            exact["divergence_nats"] = float(gaps.sum() / tokens.sum())
            exact["divergence_nats_ci"] = nats_interval(gaps, tokens, config.bootstrap, seed)
    return {
        "samples": len(texts.tokens),
        "judge_perplexity": value,
        "judge_perplexity_ci": interval,
        **exact,
        **_diversity(texts),
        **_diversity_intervals(texts),
        "judge_unigram_entropy": float(scores.unigram.mean()) if judge.retokenized else None,
    }


def _score(
    texts: Texts, judge: AnyJudge, config: EvaluateConfig, world: World, progress: Counter | None = None
) -> Scores:
    """See `Judge.score`; a batch at a time, as the rows were drawn."""
    advance = None if progress is None else progress.advance

    def score(batch: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = texts.rows(slice(batch.start, batch.stop))
        return *judge.score(part.tokens, advance, part.written, config.end_of_text), _judge_entropies(part, judge)

    parts = world.share(len(texts.tokens), config.batch, score)
    nats, tokens, entropies = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Scores(nats, tokens, entropies, sample_bigrams(*_arrays(texts)))


def _judge_entropies(texts: Texts, judge: AnyJudge) -> np.ndarray:
    """(N,) the entropy of each text's own token counts, in the tokens that the judge reads."""
    if isinstance(judge, Judge) and judge.retokenized:
        tokens, _, written = judge.retokenize(texts.tokens, texts.written)
        texts = Texts(tokens, written)
    return unigram_entropies(*_arrays(texts))


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
