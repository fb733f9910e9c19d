"""The model type ``fewstep`` of lm-evaluation-harness: any denoiser that fewstep loads, through any of its rules."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import fewstep.models
from distill.completions import Completion, complete
from distill.config import validate
from distill.data.chat import rendered
from distill.evaluation.likelihood import LogLikelihood, Pair, log_likelihoods, written_greedily
from distill.evaluation.sample import at_precision
from distill.finished import Student
from distill.generation import encoded
from distill.runtime.world import local_device
from fewstep.harness.settings import TEACHER_OPTIONS, HarnessSettings, RequestSettings, request_settings
from teachers.errors import UserError
from teachers.process import MaskedProcess
from teachers.source import reason

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class FewstepLM(TemplateLM):
    """A denoiser that answers the harness's three kinds of requests.

    Args:
        arguments: ``--model_args``: `HarnessSettings`, and what a config's ``teacher`` section may say of a checkpoint.

    Attributes:
        completions: of all requests so far, for the passes that they took.

    Raises:
        UserError: a setting is unknown or out of range, or the model can not be loaded.
    """

    def __init__(self, **arguments: Any):
        super().__init__()
        options = {key: value for key, value in arguments.items() if key in TEACHER_OPTIONS}
        self.settings = validate(HarnessSettings, {k: v for k, v in arguments.items() if k not in TEACHER_OPTIONS})
        self.student = opened(self.settings, options)
        self.tokenizer, self.denoiser = self.student.tokenizer, self.student.denoiser
        self.process = MaskedProcess(self.student.schedule)
        self.rule = self.settings.rule(self.student.sampler, self.denoiser.spec)
        self.steps = self.settings.steps or self.student.steps
        self.completions: list[Completion] = []

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.denoiser.device

    @property
    def eot_token_id(self) -> int | None:
        """The end-of-text token, where the model has one."""
        return self.denoiser.spec.eos_id

    @property
    def max_length(self) -> int:
        """Tokens of the longest canvas."""
        return self.denoiser.spec.max_length

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests tells chat templates apart by."""
        return self.settings.pretrained.replace("/", "__")

    @property
    def prefix(self) -> list[int]:
        """What stands before a text without context: the token that begins texts, or else the one that ends them."""
        begin: Any = self.tokenizer.bos_token_id
        return [token for token in (begin, self.eot_token_id) if token is not None][:1]

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model: how it wrote, and what that took."""
        info = {
            "model_num_parameters": sum(p.numel() for p in self.denoiser.parameters()),
            "sampler": self.rule.model_dump(),
            "steps": self.steps,
        }
        if not self.completions:
            return info
        passes, tokens, nfe = (
            sum(cost) for cost in zip(*((c.passes, c.tokens, c.nfe) for c in self.completions), strict=True)
        )
        return info | {"nfe": nfe / len(self.completions), "tokens_per_forward": tokens / passes}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; no special ones but those that it spells, as everywhere in fewstep."""
        return encoded(self.tokenizer, string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's chat template writes it.

        Raises:
            UserError: there is none, or it fails.
        """
        return rendered(
            self.tokenizer, chat_history, "a request", add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts; a text ends before the first of its stop strings.

        Raises:
            UserError: a setting of a request is out of range, or a prompt does not fit.
        """
        asked: list[Any] = [request.args for request in requests]
        texts = [""] * len(requests)
        for arguments, numbers in alike([arguments for _, arguments in asked]):
            settings, until = request_settings(self.settings, arguments)
            prompts = [self.tok_encode(asked[number][0]) for number in numbers]
            for number, completion in zip(numbers, self.complete(prompts, settings), strict=True):
                texts[number] = cut(completion.text, until)
        return self.remembered("generate_until", requests, texts)

    def complete(self, prompts: Sequence[list[int]], settings: RequestSettings) -> list[Completion]:
        """What follows prompts; those of about the same length in one batch, where each has a canvas of its own."""
        room = 1 if settings.length else settings.max_gen_toks
        prompts = [self.shortened(prompt, (settings.length or self.max_length) - room) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda number: 0 if settings.length else -len(prompts[number]))
        rule = settings.rule(self.student.sampler, self.denoiser.spec)
        written = complete(
            self.denoiser, self.tokenizer, [prompts[number] for number in order],
            settings.length or room, rule, settings.steps or self.steps, settings.seed, self.settings.rows,
            self.process, self.student.critic(rule), padding="none" if settings.length else "right",
        )  # fmt: skip
        self.completions += written
        place = {number: place for place, number in enumerate(order)}
        return [written[place[number]] for number in range(len(prompts))]

    def shortened(self, context: list[int], most: int) -> list[int]:
        """A context without the tokens at its start that leave no room, where ``truncation`` allows that."""
        if len(context) <= most or not self.settings.truncation:
            return context
        return context[len(context) - max(most, 0) :]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of every continuation given its context, log p in nats, and whether it is what the model writes greedily.

        That is known of one token, and from left to right; of the bound of several, the rule tells by writing as many.

        Raises:
            UserError: a context leaves no room.
        """
        pairs = [self.encoded_pair(*request.args) for request in requests]
        found = self.log_likelihoods(pairs)
        open_ = [number for number, answer in enumerate(found) if answer.greedy is None]
        told = dict(zip(open_, self.written_greedily([pairs[number] for number in open_]), strict=True))
        answers = [(answer.log_prob, bool(told.get(n, answer.greedy))) for n, answer in enumerate(found)]
        return self.remembered("loglikelihood", requests, answers)

    def encoded_pair(self, context: str, continuation: str) -> Pair:
        """The tokens of a request, its context as short as it must be."""
        if context:
            before, tokens = self._encode_pair(context, continuation)
        else:
            before, tokens = self.prefix, self.tok_encode(continuation)
        return Pair(self.shortened(before, self.max_length - len(tokens)), tokens)

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[LogLikelihood]:
        """See `distill.evaluation.likelihood.log_likelihoods`."""
        settings = self.settings
        return log_likelihoods(
            self.denoiser, pairs, settings.samples, settings.seed, settings.rows, settings.likelihood, self.process
        )

    def written_greedily(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the rule writes just these continuations; nothing is, where ``greedy`` is not asked for."""
        if not self.settings.greedy:
            return [False] * len(pairs)
        return written_greedily(
            self.denoiser, pairs, self.rule, self.steps, self.settings.seed, self.settings.rows, self.process,
            self.student.critic(self.rule),
        )  # fmt: skip

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, log p in nats, window after window, each behind the last token of the one before it."""
        windows = [list(self.windows(self.tok_encode(request.args[0]))) for request in requests]
        found = iter(self.log_likelihoods([pair for pairs in windows for pair in pairs]))
        return self.remembered(
            "loglikelihood_rolling", requests, [sum(next(found).log_prob for _ in pairs) for pairs in windows]
        )

    def windows(self, tokens: list[int]) -> Iterator[Pair]:
        """A text in pieces that fit, the last of them behind as much as fits."""
        if not self.prefix and len(tokens) <= self.max_length:
            yield Pair([], tokens)
            return
        # without a token to stand before it, the first one of the text is not asked for
        before, *rest = [*self.prefix, *tokens]
        for pair in get_rolling_token_windows(rest, before, self.max_length - 1, 1):
            yield Pair(*make_disjoint_window(pair))

    def remembered(self, kind: str, requests: Sequence[Instance], answers: list[Any]) -> list[Any]:
        """The answers, which the harness keeps where it was told to."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers

    def _loglikelihood_tokens(self, requests: Iterable[Any], **_: Any) -> list[tuple[float, bool]]:
        found = self.log_likelihoods([Pair(context, continuation) for _, context, continuation in requests])
        return [(answer.log_prob, bool(answer.greedy)) for answer in found]


def opened(settings: HarnessSettings, options: dict[str, Any]) -> Student:
    """The model, on its device: as `fewstep generate` opens it, or with a teacher's options.

    Raises:
        UserError: it can not be loaded.
    """
    if options:
        student = fewstep.models.load_teacher(settings.pretrained, precision=settings.precision, **options).finished
    else:
        student = fewstep.models.load_student(settings.pretrained).finished
    denoiser = student.denoiser if settings.precision is None else at_precision(student.denoiser, settings.precision)
    denoiser.to(place(settings.device))
    return replace(student, denoiser=denoiser)


def place(device: str | None) -> torch.device:
    """The device of that name; a GPU, which the harness asks for unless told otherwise, only where there is one.

    Raises:
        UserError: no device has such a name.
    """
    try:
        named = local_device(0) if device is None else torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown ({reason(error)}); give cpu, cuda or cuda:0") from error
    return local_device(0) if named.type == "cuda" and not torch.cuda.is_available() else named


def alike(arguments: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[int]]]:
    """The requests with the same keyword arguments: these, and the numbers of the requests."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, values in enumerate(arguments):
        groups[json.dumps(values, sort_keys=True, default=str)].append(number)
    return [(arguments[numbers[0]], numbers) for numbers in groups.values()]


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]
