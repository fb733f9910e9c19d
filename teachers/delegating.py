"""The base of denoisers that wrap another one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from teachers.canvas import Canvas
from teachers.compilation import Compilation
from teachers.denoiser import Compression, Contexts, Denoiser, Layout
from teachers.ops.head import LinearHead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teachers.cache import Window


class DelegatingDenoiser(Denoiser):
    """A denoiser around another one, to which it leaves whatever it does not do itself.

    Args:
        inner: registered, so that its parameters are this module's as well.
    """

    inner: Denoiser

    def __init__(self, inner: Denoiser):
        super().__init__()
        self.inner, self.spec, self.capabilities, self.columns = inner, inner.spec, inner.capabilities, inner.columns
        self.companions, self.tally = dict(inner.companions), inner.tally

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """See `Denoiser.features`."""
        return self.inner.features(canvas, select)

    def head(self, features: Tensor) -> Tensor:
        """See `Denoiser.head`."""
        return self.inner.head(features)

    def linear_head(self) -> LinearHead | None:
        """See `Denoiser.linear_head`."""
        return self.inner.linear_head()

    def time(self, canvas: Canvas) -> Tensor:
        """See `Denoiser.time`."""
        return self.inner.time(canvas)

    def timed(self) -> Denoiser:
        """See `Denoiser.timed`."""
        return self.inner.timed()

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """See `Denoiser.hidden_states`."""
        return self.inner.hidden_states(canvas, embeddings)

    def window_features(self, canvas: Canvas, window: Window) -> Tensor:
        """See `Denoiser.window_features`."""
        return self.inner.window_features(canvas, window)

    def token_embeddings(self) -> Tensor:
        """See `Denoiser.token_embeddings`."""
        return self.inner.token_embeddings()

    def blocks(self) -> nn.ModuleList:
        """See `Denoiser.blocks`."""
        return self.inner.blocks()

    def checkpoint_activations(self, contexts: Contexts | None = None) -> None:
        """See `Denoiser.checkpoint_activations`."""
        self.inner.checkpoint_activations(contexts)

    def compile_passes(self, compilation: Compilation) -> None:
        """See `Denoiser.compile_passes`."""
        self.inner.compile_passes(compilation)

    @property
    def compilation(self) -> Compilation:
        """See `Denoiser.compilation`."""
        return self.inner.compilation

    def use_flex_attention(self) -> None:
        """See `Denoiser.use_flex_attention`."""
        self.inner.use_flex_attention()

    def commit_logits(self, features: Tensor, summaries: Tensor, where: Tensor) -> Tensor | None:
        """See `Denoiser.commit_logits`."""
        return self.inner.commit_logits(features, summaries, where)

    @property
    def repulsion(self) -> Tensor | None:
        """See `Denoiser.repulsion`."""
        return self.inner.repulsion

    @property
    def network(self) -> nn.Module:
        """See `Denoiser.network`."""
        return self.inner.network

    @property
    def output_layer(self) -> nn.Module:
        """See `Denoiser.output_layer`."""
        return self.inner.output_layer

    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """See `Denoiser.save`."""
        self.inner.save(folder, compression, released)

    def as_read(self, compression: Compression | None = None) -> AbstractContextManager[None]:
        """See `Denoiser.as_read`."""
        return self.inner.as_read(compression)

    def laid_out(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase | None
    ) -> AbstractContextManager[tuple[Denoiser, PreTrainedTokenizerBase | None]]:
        """See `Denoiser.laid_out`."""
        return self.inner.laid_out(layout, tokenizer)

    @property
    def device(self) -> torch.device:
        """See `Denoiser.device`."""
        return self.inner.device
