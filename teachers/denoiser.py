"""The contract every teacher and every student keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from teachers.canvas import Canvas
from teachers.capability import Capability
from teachers.companions import end_tokens
from teachers.compilation import Compilation, compilation_of, compile_blocks
from teachers.errors import UserError
from teachers.host import alike, derived
from teachers.ops.head import LinearHead
from teachers.ops.log_softmax import log_softmax_without
from teachers.positions import at
from teachers.randomness import Randomness
from teachers.tally import Tally

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.cache import Window

Attention = Literal["full", "block", "causal"]
Compression = Literal["int8", "int4"]
"""How weights can be written smaller, where the capability is declared."""
Layout = Literal["own", "stock", "sdar"]
"""How a folder is laid out: as the family's releases are, as stock transformers' are, or as SDAR's are."""
UNBOUNDED = 2**20
"""Tokens of a canvas where nothing in a network bounds them; no memory holds more [own]."""
Contexts = Callable[[], tuple[AbstractContextManager[object], AbstractContextManager[object]]]
"""Makes what surrounds a forward pass, and its repetition in the backward pass."""


@dataclass(frozen=True)
class DenoiserSpec:
    """What a sampler or an objective must know of a denoiser.

    Attributes:
        mask_id: the mask token.
        vocabulary: V, the width of the logits, mask column included.
        max_length: the longest canvas.
        trained_length: tokens of the rows it is made for, where longer ones are possible; None: ``max_length``.
        gaps: ids that no token of the tokenizer has, in runs, first and one past the last; never drawn, as the mask.
        eos_id, pad_id: None where the tokenizer has none.
        shift: the model predicts the *next* position, as autoregressive models do; `Denoiser.features` undoes it.
        attention: "full", "block" (causal between blocks, full within) or "causal" (an autoregressive judge).
        block_size: for "block" attention.
        time_conditioned: whether the network reads the time of a canvas.
    """

    mask_id: int
    vocabulary: int
    max_length: int
    eos_id: int | None = None
    pad_id: int | None = None
    shift: bool = False
    attention: Attention = "full"
    block_size: int | None = None
    time_conditioned: bool = False
    trained_length: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """A checkpoint's config may say anything, and JSON has lists only.

        Raises:
            UserError: gaps that are none.
        """
        if not _are_gaps(self.gaps, self.vocabulary, self.mask_id):
            raise UserError(
                f"gaps {self.gaps!r} of the vocabulary are none; they must be pairs of ids, first and one past the "
                f"last, in order, within {self.vocabulary} and without the mask {self.mask_id}"
            )
        object.__setattr__(self, "gaps", tuple((first, end) for first, end in self.gaps))

    @property
    def length(self) -> int:
        """Tokens of a canvas, unless told otherwise."""
        return self.max_length if self.trained_length is None else self.trained_length

    def check_mask(self) -> None:
        """Refuse what a denoiser without a mask can not do, whose mask id no canvas holds.

        Raises:
            UserError: it is one.
        """
        if self.mask_id >= self.vocabulary:
            raise UserError(
                "this model has no mask token, which samplers fill and objectives predict; its log-probabilities are "
                "all that can be asked for"
            )

    def excluded(self, device: torch.device | str) -> Tensor:
        """(V,) bool: the entries that no text has, the mask, where there is one, and the `gaps`."""
        nothing = torch.zeros(self.vocabulary, dtype=torch.bool, device=device)
        return nothing.index_fill_(0, self.excluded_ids(device), True)

    def excluded_ids(self, device: torch.device | str) -> Tensor:
        """(E,) int64: the same entries by their ids, the mask first."""
        runs = [(self.mask_id, min(self.mask_id + 1, self.vocabulary)), *self.gaps]
        return torch.cat([torch.arange(first, max(first, end), device=device) for first, end in runs])

    def tokens(self, device: torch.device | str) -> Tensor:
        """(V − excluded,) int64: the ids that text can have, in order."""
        ends = sorted([(0, 0), (self.mask_id, self.mask_id + 1), (self.vocabulary, self.vocabulary), *self.gaps])
        between = ((ends[n][1], ends[n + 1][0]) for n in range(len(ends) - 1))
        return torch.cat([torch.arange(first, end, device=device) for first, end in between])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's config."""
        return {**asdict(self), "gaps": [list(gap) for gap in self.gaps]}


def _are_gaps(gaps: Any, vocabulary: int, mask_id: int) -> bool:
    if not isinstance(gaps, list | tuple) or not all(isinstance(g, list | tuple) and len(g) == 2 for g in gaps):
        return False
    ends = [end for gap in gaps for end in gap]
    if not all(type(end) is int for end in ends) or any(first <= mask_id < end for first, end in gaps):
        return False
    return ends == sorted(set(ends)) and all(0 <= end <= vocabulary for end in ends)


def log_probabilities(logits: Tensor, spec: DenoiserSpec) -> Tensor:
    """(…, V) logits of any type → float32 log-probabilities of tokens; −∞ for the mask and for ids without a token."""
    return log_softmax_without(logits, spec.excluded_ids(logits.device))


class Denoiser(nn.Module, ABC):
    """p(x₀ | z): a network that predicts every clean token from a canvas.

    Time, padding, positions and the shift are its own business: it reads them off the canvas.

    ``log_probs(…) = head(features(…))``: what the head reads can be held for all positions, and its V wide output for a
    few at a time (teachers/chunks.py). A denoiser that is not split so has its log-probabilities for features.

    Attributes:
        capabilities: what it can do beyond predicting; asking for another one is a `UserError`.
        collective: passes are collective, as under ZeRO 3, where each process holds a part of the parameters: all
            processes must make equally many, with equally many head calls, whatever their data. The engine sets it.
        columns: block attention counts a canvas's columns, padding included, not a row's tokens.
        companions: files that lie beside the weights and belong to them, by name, see `teachers.companions`.
        flex: whether masks of blocks are tiles of `torch.nn.attention.flex_attention`.
        tally: of the sequences that the network is sent; one that computes with another one's shares it.
    """

    spec: DenoiserSpec
    capabilities: frozenset[Capability] = frozenset()
    collective: bool = False
    columns: bool = False
    flex: bool = False
    companions: Mapping[str, bytes] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()

    @abstractmethod
    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """What `head` reads, one pass of the network: (B, L, H), or (N, H) under ``select``.

        Args:
            select: (B, L) bool; only these N positions, in row-major order, reach the head.
        """

    def features_at(self, canvas: Canvas, select: Tensor) -> Tensor:
        """`features` at the N positions of ``select``, (N, H); one forward row serves rows that are all the same.

        All-masked canvases are. Padded rows, rows at times of their own and blocks behind a prefix are never taken for
        the same.
        """
        z = canvas.tokens
        alone = any(part is not None for part in (canvas.real, canvas.context, canvas.prefix))
        if len(z) < 2 or alone or self.spec.time_conditioned or not alike(z):
            return self.features(canvas, select)
        wanted = derived(lambda each: each.any(0, keepdim=True), select)
        shared = self.features(canvas.rows(slice(0, 1)), wanted)
        return shared[at((wanted.cumsum(1) - 1).expand_as(z), select)]

    def head(self, features: Tensor) -> Tensor:
        """(…, H) `features` → (…, V) float32 log-probabilities of x₀, −∞ for what is no text; each position alone."""
        return features

    def linear_head(self) -> LinearHead | None:
        """What `head` normalises, where that is one linear layer whose weights are at hand; else None."""
        return None

    def log_probs(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """Unshifted log-probabilities of x₀, as `head` gives them: (B, L, V), or (N, V). Arguments as `features`."""
        return self.head(self.features(canvas, select))

    def time(self, canvas: Canvas) -> Tensor:
        """(B,) float32 t that a time-conditioned network reads: the canvas's own, or else the share that is open."""
        return (canvas.open_share() if canvas.time is None else canvas.time).float()

    def timed(self) -> Denoiser:
        """The same network, reading the time of a canvas where it can do so but by default does not; or else itself."""
        return self

    def require(self, capability: Capability, purpose: str) -> None:
        """Refuse to go on where a capability is missing.

        Args:
            purpose: what asks for it, for the message.

        Raises:
            UserError: it is.
        """
        if capability not in self.capabilities:
            has = ", ".join(sorted(self.capabilities)) or "none"
            raise UserError(
                f"{purpose} needs a network with {capability}, and {type(self).__name__} has none (it has: {has}); "
                "choose another teacher, or an objective or sampler that does without"
            )

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """(B, L, H) final hidden states, in the positions of the tokens they describe; for critics.

        Args:
            embeddings: (B, L, E) read in place of those of the canvas's tokens; capability "embeddings".
        """
        self.require("hidden states", "reading hidden states")
        raise AssertionError(f"{type(self).__name__} declares hidden states and has none")

    def window_features(self, canvas: Canvas, window: Window) -> Tensor:
        """One pass over some columns of a canvas beside kept keys and values of others; capability "cache".

        Args:
            canvas: R rows; or one, where all are the same. window: which columns are sent.

        Returns:
            (R or 1, Q, H) what `head` reads at the columns that are sent. Which of them describes a token,
            `teachers.cache.sources` says.
        """
        self.require("cache", "keeping keys and values")
        raise AssertionError(f"{type(self).__name__} declares a cache and has none")

    def token_embeddings(self) -> Tensor:
        """(V, E) what the first block reads for each token; a mixture of the rows is a token not yet decided."""
        self.require("embeddings", "mixing embeddings")
        raise AssertionError(f"{type(self).__name__} declares embeddings and has none")

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last; for critics that train only the last few."""
        self.require("blocks", "choosing transformer blocks")
        raise AssertionError(f"{type(self).__name__} declares blocks and has none")

    def checkpoint_activations(self, contexts: Contexts | None = None) -> None:
        """Keep no activations within the transformer blocks from now on; the backward pass computes them again.

        Args:
            contexts: what surrounds each pass and its repetition; None for nothing.
        """
        self.require("checkpointing", "train.gradient_checkpointing")
        raise AssertionError(f"{type(self).__name__} declares checkpointing and has none")

    def compile_passes(self, compilation: Compilation) -> None:
        """Compile the transformer blocks for passes without a gradient; see `teachers.compilation`.

        Raises:
            UserError: it has none.
        """
        self.require("blocks", "compile")
        compile_blocks(self.blocks(), compilation)

    @property
    def compilation(self) -> Compilation:
        """How its passes without a gradient are compiled, if they are."""
        return "blocks" in self.capabilities and compilation_of(self.blocks())

    def use_flex_attention(self) -> None:
        """Compute attention in blocks and documents by flex attention, without a mask of S² entries, where it has any.

        Raises:
            UserError: its attention in blocks can not be computed so.
        """

    def commit_logits(self, features: Tensor, summaries: Tensor, where: Tensor) -> Tensor | None:
        """Which open positions a sampler should commit: (N,) logits; None for a denoiser that has no such opinion.

        Args:
            features: (N, H) at open positions. summaries: (N, 2), `students.planner.summary` of what `head` says
                there. where: (N, S), `students.planner.surroundings` of them.
        """
        return None

    @property
    def repulsion(self) -> Tensor | None:
        """(2, R) how commitments of a pass keep apart, see `students.planner.draw_commits`; None: they do not."""
        return None

    @property
    def network(self) -> nn.Module:
        """The module whose linear layers adapters can sit on."""
        self.require("adapters", "putting adapters into a network")
        raise AssertionError(f"{type(self).__name__} declares adapters and has no network")

    @property
    def output_layer(self) -> nn.Module:
        """The linear layer of `network` that `head` applies, on which no adapter sits."""
        self.require("adapters", "putting adapters into a network")
        raise AssertionError(f"{type(self).__name__} declares adapters and has no output layer")

    @abstractmethod
    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """Write a checkpoint in the family's own format, so that `load_denoiser` gives it back.

        Args:
            compression: None for whole weights; else capability "compression".
            released: whether whole weights are of the types that the release's files have, not all float32.
        """

    @contextmanager
    def as_read(self, compression: Compression | None = None) -> Iterator[None]:
        """While entered, the parameters are what readers make of those that `save` writes under ``released``."""
        yield

    @contextmanager
    def laid_out(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase | None
    ) -> Iterator[tuple[Denoiser, PreTrainedTokenizerBase | None]]:
        """This denoiser as one whose `save` writes another layout, and its tokenizer; they share the parameters.

        Raises:
            UserError: it has no such layout.
        """
        if layout != "own":
            raise UserError(
                f"layout {layout!r} is for networks of stock transformers, and {type(self).__name__} is none; leave it "
                "out, for the format of the teacher's own release"
            )
        yield self, tokenizer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`log_probs`, so that wrappers such as DeepSpeed's engine can call the module."""
        return self.log_probs(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


def end_ids(denoiser: Denoiser) -> list[int]:
    """The tokens that end a text, that of its spec first; a release's settings of generation may name others.

    Empty where a model has none.
    """
    first = denoiser.spec.eos_id
    several = [token for token in end_tokens(denoiser.companions) if token != first]
    return [*([] if first is None else [first]), *several]


class ExactLaw(Denoiser):
    """A denoiser that knows the law of whole rows; capability "exact law"."""

    @abstractmethod
    def sample(self, rows: int, generator: Randomness, length: int | None = None) -> Tensor:
        """Exact draws: (rows, ``length``) int64; by default as long as `spec` says."""

    @abstractmethod
    def log_likelihood(self, tokens: Tensor) -> Tensor:
        """log p of whole rows (B, L): (B,) float64 nats."""

    @abstractmethod
    def entropy(self, length: int | None = None) -> float:
        """Of a row of ``length`` tokens, in nats."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Numbers that make up the law."""
