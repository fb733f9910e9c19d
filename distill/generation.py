"""Text from a finished model: prompts to canvases, canvases filled, tokens back to text."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.data.chat import opened
from distill.finished import Student
from students.fill import Filled, fill_to_length
from students.samplers import PRESETS, SAMPLERS, SERVED, Sampler, released_sampler
from teachers.canvas import Canvas
from teachers.compilation import clock
from teachers.denoiser import DenoiserSpec, end_ids
from teachers.errors import UserError, nearest
from teachers.process import MaskedProcess
from teachers.source import reason

ROWS = 64  # canvases in a batch [own]
BREAK = "\n\n"  # where one document ends and another begins [own]


@dataclass(frozen=True)
class Generated:
    """N texts, and what they cost.

    Attributes:
        texts: prompt and continuation, or of a chat the answer alone. Padding is left out, and a run of end-of-text
            tokens is one blank line.
        prompts: what each of them continues; "" for none.
        tokens: (N, L) int64, as they were written, prompts included.
        nfe: (N,) int64, forward passes that each text took. length_nfe: passes before these, which found out its
            length; None where nothing looked for it.
        log_prob: (N,) float64 nats of all that was written; None where the sampler's choice of positions depends on
            what it drew, see `students.fill.Filled`.
        written: tokens that were written, over all texts.
        seconds: what that took, without compiling.
        sampler, steps, seed: how they were written.
    """

    texts: list[str]
    prompts: list[str]
    tokens: Tensor
    nfe: Tensor
    length_nfe: Tensor | None
    log_prob: Tensor | None
    written: int
    seconds: float
    sampler: Sampler
    steps: int
    seed: int


def generate(
    student: Student,
    prompts: str | Sequence[str] | None = None,
    num: int = 1,
    steps: int | None = None,
    sampler: Sampler | str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    length: int | None = None,
    chat: bool = False,
    track: Callable[[Sequence[Canvas]], Iterable[Canvas]] = iter,
) -> Generated:
    """Write texts, those of one prompt after another.

    Args:
        prompts: kept at the start of the texts. Mask tokens spelled in one are filled like the rest.
        num: texts for each prompt.
        steps: reverse transitions, of a text or as the sampler counts them; by default what the student was made for,
            or one a token where that is fewer, or one a block where that is more. One a token for an engine's sampler.
        sampler: the rule, or its name in `SAMPLERS` or `PRESETS`; by default what the student was made for.
        temperature: by default the sampler's own; where it is given, tokens are drawn, also by a greedy sampler.
        seed: the same seed gives the same texts; a random one by default.
        length: tokens a text, prompt included; by default what the student was trained on.
        chat: prompts are what a user says, which the tokenizer's chat template puts into words, and texts are the
            answers alone, up to their first end token.
        track: goes through the batches, for a progress bar.

    Raises:
        UserError: a value out of range, a prompt that does not fit or can not be encoded, or no chat template.
    """
    student.denoiser.spec.check_mask()
    check_counts(num=num, steps=steps, length=length)
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is outside 0 to 2^63 - 1; give another one")
    rule = chosen_sampler(student.sampler, sampler, temperature, student.denoiser.spec).suited(student.denoiser)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts or [""])
    if chat:
        prompts = [_turn(student.tokenizer, prompt) for prompt in prompts]
    canvas = build_canvas(student.tokenizer, student.denoiser.spec, prompts, length or student.canvas_length)
    to_write = canvas.open.sum(1)
    taken = _steps(student, rule, canvas, steps, sampler)
    seed = secrets.randbits(32) if seed is None else seed
    row, start = torch.arange(len(prompts)).repeat_interleave(num), clock()
    filled = write(student, track([canvas.rows(rows) for rows in row.split(ROWS)]), taken, rule, seed, steps is None)
    seconds = clock() - start
    continued = [prompts[i] for i in row.tolist()]
    read = partial(_answer, student) if chat else partial(text_of, student.tokenizer)
    tokens = torch.cat([part.tokens.cpu() for part in filled])
    return Generated(
        texts=[read(ids, prompt) for ids, prompt in zip(tokens.tolist(), continued, strict=True)],
        prompts=continued,
        tokens=tokens,
        nfe=torch.cat([part.nfe.cpu() for part in filled]),
        length_nfe=_joined([part.length_nfe for part in filled]),
        log_prob=_joined([part.log_prob for part in filled]),
        written=int(to_write[row].sum()),
        seconds=seconds,
        sampler=rule,
        steps=taken,
        seed=seed,
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One for all batches, on the CPU; they have it or none has."""
    present = [part.cpu() for part in parts if part is not None]
    return torch.cat(present) if present else None


def write(
    student: Student, canvases: Iterable[Canvas], steps: int, sampler: Sampler, seed: int, capped: bool = False
) -> list[Filled]:
    """Fill batches of canvases one after another. Arguments as of `steps_of_rows`."""
    device, process, critic = student.denoiser.device, MaskedProcess(student.schedule), student.critic(sampler)
    filled, first = [], 0
    for canvas in (canvas.to(device) for canvas in canvases):
        randomness = sampler.randomness(seed, (), range(first, first := first + len(canvas)), device)
        most = steps_of_rows(canvas, sampler, steps, capped)
        filled.append(
            fill_to_length(student.denoiser, canvas, sampler, most, randomness, process=process, critic=critic)
        )
    return filled


def steps_of_rows(canvas: Canvas, sampler: Sampler, steps: int, capped: bool = False) -> int | Tensor:
    """The steps of each row: no more than it has open positions, unless steps are of blocks or more can do more; rows
    that a critic guides take the same.

    Args:
        capped: no row shall have more steps than open positions, even if these could do more.
    """
    alike = sampler.needs_critic or sampler.budget == "block" or not (capped or sampler.bounded)
    return steps if alike else canvas.open.sum(1).clamp(max=steps)


def _steps(student: Student, rule: Sampler, canvas: Canvas, steps: int | None, sampler: Sampler | str | None) -> int:
    """The steps that were asked for; or what the student was made for, within what its sampler can."""
    longest = int(canvas.open.sum(1).max())
    if steps is not None:
        check_most(steps, rule.steps_between(longest)[1], rule)
        return steps
    most = rule.one_a_token(longest)
    own = most if isinstance(sampler, str) and sampler in SERVED else student.steps
    return min(max(own, rule.fewest_steps(canvas, student.denoiser)), most)


def check_counts(**counts: int | None) -> None:
    """Refuse what is less than one."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{name} {value} is too small; give at least 1")


def check_most(steps: int, most: int, sampler: Sampler) -> None:
    """Refuse more steps than a sampler can make.

    Args:
        most: of `Sampler.steps_between`, of what is to be written.
    """
    if steps <= most:
        return
    if not sampler.bounded:
        raise UserError(f"steps {steps} is more than {most}, the most there may be; give fewer")
    raise UserError(
        f"steps {steps} is more steps than tokens: {most} are to be written, and {sampler.name} writes one or more in "
        f"each step; give steps {most} or fewer, a larger length, or another sampler, such as ancestral"
    )


def chosen_sampler(
    own: Sampler, sampler: Sampler | str | None, temperature: float | None, spec: DenoiserSpec
) -> Sampler:
    """The rule that was asked for, a model's ``own`` where none was, or where it is asked for by name.

    Raises:
        UserError: no such rule, or a temperature that is none.
    """
    if isinstance(sampler, str):
        sampler = _named_sampler(own, sampler, spec)
    sampler = own if sampler is None else sampler
    if temperature is None:
        return sampler
    if not 0 < temperature < float("inf"):
        raise UserError(
            f"temperature {temperature:g} is not a positive number; give e.g. 0.9, or 1 for the model's law"
        )
    return at_temperature(sampler, temperature)


def at_temperature(sampler: Sampler, temperature: float) -> Sampler:
    """The rule with tokens drawn at that temperature, also where its own draws are greedy; greedily at 0."""
    if temperature == 0:
        return sampler.model_copy(update={"temperature": 1.0, "draw": "greedy"})
    draw = "exact" if sampler.draw == "greedy" else sampler.draw
    return sampler.model_copy(update={"temperature": temperature, "draw": draw})


def _named_sampler(own: Sampler, name: str, spec: DenoiserSpec) -> Sampler:
    if name in SAMPLERS:
        return own if name == own.name else SAMPLERS[name](name=name)
    sampler, allowed = released_sampler(name, spec), [*SAMPLERS, *PRESETS]
    if name in SERVED and spec.block_size is None:
        raise UserError(
            f"sampler {name!r} is that of an engine, which serves models with attention in blocks, and this model's is "
            f"{spec.attention}; give another one, such as threshold or top_k"
        )
    if sampler is None:
        raise UserError(f"sampler {name!r} is unknown{nearest(name, allowed)}; allowed are {', '.join(allowed)}")
    return sampler


def build_canvas(tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec, prompts: Sequence[str], length: int) -> Canvas:
    """One row for each prompt: its tokens, then as many masks as fit into ``length`` tokens.

    Raises:
        UserError: longer than the model's positions, a prompt that leaves no room, or one that can not be encoded.
    """
    if length > spec.max_length:
        raise UserError(f"length {length} is more than the model's {spec.max_length} positions; give a smaller one")
    tokens = torch.full((len(prompts), length), spec.mask_id)
    for row, prompt in zip(tokens, prompts, strict=True):
        ids = encoded(tokenizer, prompt)
        if len(ids) >= length:
            raise UserError(
                f"prompt {prompt[:40]!r} has {len(ids)} tokens and the canvas {length}, which leaves none to write; "
                f"give a shorter prompt, or a larger length"
            )
        row[: len(ids)] = torch.tensor(ids)
    return Canvas.of(tokens, spec.mask_id)


def encoded(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A prompt's tokens; special tokens that it spells are those.

    Raises:
        UserError: it can not be encoded.
    """
    if not prompt:
        return []
    try:
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # surrogates, which bytes that are not UTF-8 become; or a word tokenizer's unknown word
        raise UserError(
            f"prompt {prompt!r} can not be encoded ({reason(error)}); give valid UTF-8 text of known words"
        ) from error
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UserError(f"prompt {prompt!r} has characters that the tokenizer does not know; leave them out")
    return ids


def _turn(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """What a user says, in the chat template's words, and those in which the answer begins."""
    if not prompt:
        raise UserError("chat answers what a user says; give a prompt")
    if tokenizer.chat_template is None:
        raise UserError("this model's tokenizer has no chat template, so it answers no chat; leave chat out")
    return opened(tokenizer, [{"role": "user", "content": prompt}], f"prompt {prompt[:40]!r}")


def _answer(student: Student, tokens: list[int], prompt: str) -> str:
    given = encoded(student.tokenizer, prompt)
    written = tokens[len(given) :]
    return continuation(student.tokenizer, given, written[: first_end(written, end_ids(student.denoiser))])


def first_end(written: Sequence[int], end_tokens: Sequence[int]) -> int | None:
    """The place of the first token that ends a text; None where there is none."""
    return next((place for place, token in enumerate(written) if token in end_tokens), None)


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], written: Sequence[int]) -> str:
    """What tokens say after those of a prompt.

    Some tokenizers drop the space in front of the first word that they decode, so the prompt is decoded with it.
    """
    before, whole = _text(tokenizer, prompt), _text(tokenizer, [*prompt, *written])
    return whole.removeprefix(before) if whole.startswith(before) else _text(tokenizer, written)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # of one row
    return text


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: list[int], prompt: str = "") -> str:
    """What tokens say, after the very prompt that they continue.

    A tokenizer may not give back what it read (some change case or spaces), so the prompt is not decoded, unless
    masks within it have been filled.
    """
    text = decoded(tokenizer, tokens)
    start = decoded(tokenizer, encoded(tokenizer, prompt))
    return prompt + text.removeprefix(start) if text.startswith(start) else text


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """The documents that tokens hold, a blank line between two of them; padding says nothing.

    Nothing is cut at an end-of-text token: what follows is another document.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    parts = groupby((token for token in tokens if token != pad or token == end), key=lambda token: token == end)
    return "".join(BREAK if is_end else plain(tokenizer, list(part)) for is_end, part in parts)


def plain(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """What tokens say, letter by letter."""
    text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # of one row
    return text
