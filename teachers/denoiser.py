"""The contract every teacher and every student keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Attention = Literal["full", "block", "causal"]


@dataclass(frozen=True)
class DenoiserSpec:
    """What a sampler or an objective must know of a denoiser.

    Attributes:
        mask_id: the mask token.
        vocabulary: V, the width of the logits, mask column included.
        max_length: the longest canvas.
        eos_id, pad_id: None where the tokenizer has none.
        shift: the model predicts the *next* position, as autoregressive models do; `Denoiser.logits` undoes it.
        attention: "full", "block" (causal between blocks, full within) or "causal" (an autoregressive judge).
        block_size: for "block" attention.
        time_conditioned: whether `logits` needs t.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's config."""
        return asdict(self)


class Denoiser(nn.Module, ABC):
    """p(x₀ | z): a network that predicts every clean token from a partly masked canvas.

    ``logits(…) = head(features(…))``: what the head reads can be held for all positions, and its V wide output for a
    few at a time (teachers/chunks.py). A denoiser that is not split so has its log-probabilities for features.

    Attributes:
        collective: passes are collective, as under ZeRO 3, where each process holds a part of the parameters: all
            processes must make equally many, with equally many head calls, whatever their data. The engine sets it.
    """

    spec: DenoiserSpec
    collective: bool = False

    @abstractmethod
    def features(
        self,
        z: Tensor,
        t: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        select: Tensor | None = None,
    ) -> Tensor:
        """What `head` reads, one pass of the network: (B, L, H), or (N, H) under ``select``.

        Args:
            z: (B, L) tokens, masked where unknown.
            t: (B,) times, for time-conditioned families only.
            attention_mask: (B, L), 1 where a token is real and 0 where it is padding.
            position_ids: (B, L).
            select: (B, L) bool; only these N positions, in row-major order, reach the head.
        """

    def features_at(self, z: Tensor, select: Tensor, t: Tensor | None = None) -> Tensor:
        """`features` at the N positions of ``select``, (N, H); one forward row serves rows that are all the same.

        All-masked canvases are. Arguments as `features`; rows at times of their own are never the same.
        """
        if t is not None or len(z) < 2 or not bool((z == z[:1]).all()):
            return self.features(z, t, select=select)
        wanted = select.any(0)
        shared = self.features(z[:1], select=wanted[None])
        return shared[(wanted.cumsum(0) - 1).expand_as(z)[select]]

    def head(self, features: Tensor) -> Tensor:
        """(…, H) `features` → (…, V) float32 log-probabilities of x₀, the mask column −∞; each position alone."""
        return features

    def logits(
        self,
        z: Tensor,
        t: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        select: Tensor | None = None,
    ) -> Tensor:
        """Unshifted log-probabilities of x₀, as `head` gives them: (B, L, V), or (N, V). Arguments as `features`."""
        return self.head(self.features(z, t, attention_mask, position_ids, select))

    def hidden_states(self, z: Tensor) -> Tensor:
        """(B, L, H) final hidden states, in the positions of the tokens they describe; for critics.

        Families with `token_embeddings` also take ``embeddings``, (B, L, E), to read instead of those of ``z``.
        """
        raise TypeError(f"{type(self).__name__} has no hidden states to read; use the auxiliary critic instead")

    def token_embeddings(self) -> Tensor:
        """(V, E) what the first block reads for each token; a mixture of the rows is a token not yet decided."""
        raise TypeError(f"{type(self).__name__} has no embeddings to mix; use a sampler without guidance instead")

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last; for critics that train only the last few."""
        raise TypeError(f"{type(self).__name__} has no blocks to choose from; use the auxiliary critic instead")

    def commit_logits(self, features: Tensor, summaries: Tensor, where: Tensor) -> Tensor | None:
        """Which masked positions a sampler should commit: (N,) logits; None for a denoiser that has no such opinion.

        Args:
            features: (N, H) at masked positions. summaries: (N, 2), `students.planner.summary` of what `head` says
                there. where: (N, S), `students.planner.surroundings` of them.
        """
        return None

    @property
    def repulsion(self) -> Tensor | None:
        """(2, R) how commitments of a pass keep apart, see `students.planner.draw_commits`; None: they do not."""
        return None

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write config and safetensors weights, so that `load_denoiser` gives the same denoiser back."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`logits`, so that wrappers such as DeepSpeed's engine can call the module."""
        return self.logits(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
