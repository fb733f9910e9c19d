"""The settings of a rule: the ``sampler:`` section of a config, what tables call it, and what steps count."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator
from torch import Tensor

from students.cache import Approximation
from students.drawing import Drawing
from students.samplers.blocks import block_numbers
from students.samplers.length import AnyLength
from students.session import check_cache
from teachers.canvas import Canvas
from teachers.denoiser import UNBOUNDED, Denoiser, end_ids
from teachers.errors import UserError

Budget = Literal["text", "block"]
"""What steps are counted for: a whole text, or each of its blocks."""


class SamplerSettings(Drawing):
    """What is known of a rule before it sees a canvas: its kind and its settings.

    Attributes:
        needs_critic: whether `fill` must be given a critic; where there is none, as for a teacher, the reference is
            plain ancestral sampling.
        adaptive: how many passes a row takes depends on what the network says; ``steps`` is then only a cap.
        edits: whether what is committed may be changed again, so that a row may take more passes than it has tokens.
        bounded: whether each step commits a token, so that more steps than there are tokens can do no more.
        whole: whether it reads whole texts, and so does not write in blocks.
        inserts: whether texts may become longer while they are written, into the padding behind them.
        block_length: tokens of the blocks that a canvas is written in, one after the other
            (students/samplers/blocks.py), or "attention" for the blocks of the model's own; None for the whole canvas
            at once.
        stop: a row ends with the first block that holds an end token; without blocks, as soon as all is written up to
            and including one. What is open then is filled with end tokens.
        budget: what ``steps`` counts: the passes of a whole "text", shared out among its blocks, or of each "block".
        cache: an approximation, see `students.cache.Approximation`: what is drawn from is no longer the law of the
            canvas. None for the exact cache, where the denoiser has one.
        length: how the length of a text is found out before it is written (students/samplers/length.py); None: it is
            as long as the canvas, as texts are in training's rollouts in any case.
    """

    needs_critic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    inserts: ClassVar[bool] = False
    name: str
    block_length: int | Literal["attention"] | None = None
    stop: bool = False
    budget: Budget = "text"
    cache: Approximation | None = None
    length: AnyLength | None = None

    @field_validator("block_length", mode="before")
    @classmethod
    def _is_length(cls, value: Any) -> Any:
        if value is None or value == "attention" or (type(value) is int and value > 0):
            return value
        raise ValueError(
            f"{value!r} is no length of a block; give a number of tokens, attention for the model's own blocks, or null"
        )

    @model_validator(mode="after")
    def _in_blocks(self) -> Self:
        if self.whole and self.block_length is not None:
            raise ValueError(
                f"{self.name} reads whole texts and does not write in blocks of {self.block_length}; leave out "
                "block_length, or choose another sampler"
            )
        if self.stop and (self.whole or self.inserts):
            raise ValueError(f"{self.name} looks at whole texts and ends none of them early; leave stop out")
        if self.stop and self.edits and self.block_length is None:
            raise ValueError(
                f"what {self.name} has written may change as long as its block is written, so that stop ends a text "
                "after one of its blocks; set block_length as well, or leave stop out"
            )
        if self.budget == "block" and self.block_length is None:
            raise ValueError(
                "budget 'block' counts the steps of each block; set block_length as well, or leave budget out"
            )
        if self.cache is not None and self.block_length is None:
            raise ValueError("cache keeps what is around a block; set block_length as well, or leave cache out")
        return self

    @property
    def label(self) -> str:
        """What tables call it: its name, and what a reader must know to compare its figures."""
        temperature = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        filters = "".join(
            f", {name.replace('_', '-')} {value:g}"
            for name, value in (("top_k", self.top_k), ("top_p", self.top_p))
            if value is not None
        )
        length = "" if self.length is None else f", {self.length.name} length"
        return (
            self.name + temperature + filters + f", {self.draw}" * (self.draw == "greedy") + self._blocks_label + length
        )

    @property
    def rule_label(self) -> str:
        """`label`, whatever the temperature."""
        return self.model_copy(update={"temperature": 1.0}).label

    @property
    def _blocks_label(self) -> str:
        counted = " with steps of their own" * (self.budget == "block")
        size = "the attention" if self.block_length == "attention" else self.block_length
        cache = "" if self.cache is None else f", approximate {self.cache} cache"
        return "" if self.block_length is None else f", blocks of {size}{counted}{cache}"

    @property
    def block_tokens(self) -> int | None:
        """``block_length`` of a sampler that is `fitted`."""
        assert self.block_length != "attention", "a sampler is fitted to a model first"
        return self.block_length

    def fitted(self, denoiser: Denoiser) -> Self:
        """The same for a denoiser, in the blocks of its attention where they are asked for.

        Raises:
            UserError: its attention has none, no token ends its texts, or it can not make such a cache.
        """
        size, fitted = denoiser.spec.block_size, self
        if self.block_length == "attention":
            if size is None:
                raise UserError(
                    f"sampler.block_length is 'attention', but this model's attention is {denoiser.spec.attention} and "
                    "has no blocks; give a number of tokens, or null"
                )
            fitted = self.model_copy(update={"block_length": size})
        if self.stop and not end_ids(denoiser):
            raise UserError("sampler.stop waits for an end token, and this model has none; set sampler.stop=false")
        if self.cache is not None:
            check_cache(denoiser, self.cache)
        return fitted

    def suited(self, denoiser: Denoiser) -> Self:
        """`fitted`, to a denoiser whose blocks it can write.

        Raises:
            UserError: its blocks cut those of the attention.
        """
        fitted, size = self.fitted(denoiser), denoiser.spec.block_size
        length = fitted.block_tokens
        if length is not None and size is not None and size % length and length % size:
            raise UserError(
                f"sampler.block_length is {length}, which cuts the blocks of {size} tokens of this model's attention; "
                f"set it to {size}, to a divisor or a multiple of it, or to attention"
            )
        return fitted

    def fewest_steps(self, canvas: Canvas, denoiser: Denoiser) -> int:
        """With how many steps every row of a canvas can be filled, at least: one for each block that shares them."""
        if self.budget == "block":
            return 1
        return int(self.block_counts(canvas, denoiser).max())

    def steps_between(self, length: int) -> tuple[int, int]:
        """With how many steps rows of ``length`` tokens can be filled, and with how many more is not gained."""
        tokens = length if self.block_tokens is None else self.block_tokens
        fewest = 1 if self.budget == "block" else -(-length // tokens)
        return fewest, self.one_a_token(length) if self.bounded else UNBOUNDED

    def one_a_token(self, length: int) -> int:
        """How many steps give each token of a row, or where they count so of a block, a step of its own."""
        tokens = self.block_tokens if self.budget == "block" else None
        return length if tokens is None else min(length, tokens)

    def most_transitions(self, length: int, steps: int) -> int:
        """How many transitions a row of ``length`` tokens has, its blocks' together, at most."""
        tokens = self.block_tokens
        return steps * -(-length // tokens) if self.budget == "block" and tokens else steps

    def most_passes(self, length: int, steps: int) -> int:
        """How many passes a row of ``length`` tokens takes, at most: one a token, unless these may change again."""
        most = self.most_transitions(length, steps)
        return most if self.edits else min(most, length)

    def transitions_of(self, canvas: Canvas, denoiser: Denoiser, steps: Tensor) -> Tensor:
        """(B,) how many transitions each row has, its blocks' together. ``steps``: (B,)."""
        if self.budget == "text":
            return steps
        return steps * self.block_counts(canvas, denoiser)

    def block_counts(self, canvas: Canvas, denoiser: Denoiser) -> Tensor:
        """(B,) in how many blocks each row is written, at least 1."""
        return block_numbers(canvas, denoiser, self.fitted(denoiser).block_tokens)[1].clamp(min=1)
