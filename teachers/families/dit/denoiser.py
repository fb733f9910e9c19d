"""A diffusion transformer as a denoiser, written in the format of its release."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teachers.attention import Mask
from teachers.cache import Window, attention_blocks
from teachers.canvas import Canvas
from teachers.capability import Capability
from teachers.companions import write_companions
from teachers.denoiser import Compression, Contexts, Denoiser, DenoiserSpec, log_probabilities
from teachers.errors import UserError
from teachers.families.dit.network import DiffusionTransformer
from teachers.families.stock.dtypes import FLOAT32, Dtypes
from teachers.families.stock.saving import parameters_as
from teachers.masks import sees_all, visibility
from teachers.ops.head import LinearHead
from teachers.positions import at
from teachers.prefix import asked_rows, doubled, states_in_text
from teachers.visibility import Visibility
from teachers.weights import write_weights

WEIGHTS_FILE = "model.safetensors"
NOISE_END = 1e-3  # of log-linear noise: σ(t) = −ln(1 − (1 − NOISE_END) t) [code]


@dataclass(frozen=True)
class Release:
    """What a checkpoint of a release is like besides its weights.

    Attributes:
        prefix: of every parameter's name.
        config: its config.json; what of it means nothing to us is kept, and written again.
        capabilities: its family's.
        settings: what its files do not say and a person did, written as the section "fewstep" of config.json.
        others: tensors beside the network's, under their whole names.
        time_optional: see `Denoiser.timed`.
        dtypes: of the tensors in its files.
        companions: see `Denoiser.companions`.
    """

    prefix: str
    config: Mapping[str, Any]
    capabilities: frozenset[Capability]
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)
    time_optional: bool = False
    dtypes: Dtypes = FLOAT32
    companions: Mapping[str, bytes] = field(default_factory=dict)


class DitDenoiser(Denoiser):
    """A `DiffusionTransformer` of an absorbing process; what it gives is normalised without the mask's column."""

    def __init__(self, transformer: DiffusionTransformer, spec: DenoiserSpec, release: Release):
        super().__init__()
        self.transformer, self.spec, self.release = transformer, spec, release
        timed: set[Capability] = {"cache"} if spec.time_conditioned else set()  # keys and values have a time
        self.capabilities, self.companions = release.capabilities - timed, release.companions

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """What the output's linear layer reads; see `Denoiser.features`."""
        if canvas.prefix is not None and select is not None:
            canvas, select = asked_rows(canvas, select)
        hidden = self.hidden_states(canvas)
        return hidden if select is None else at(hidden, select)

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """See `Denoiser.hidden_states`."""
        assert canvas.context is None, "what it is for, training from text, makes stock networks alone"
        if canvas.prefix is not None:
            assert embeddings is None, "blocks behind a prefix are of training, which reads tokens"
            return self._states_behind_prefix(canvas)
        self.tally.add(len(canvas))
        if embeddings is None:
            embeddings = self.transformer.vocab_embed(canvas.tokens)
        visible = None if canvas.real is None else canvas.real[:, None, None]
        if self.spec.attention == "block" and not sees_all(canvas.length, self.spec.block_size):
            size = self.spec.block_size
            visible = self._mask(visibility("block", canvas.length, canvas.device, size, canvas.real))
        return self.transformer(embeddings, self._noise_level(canvas), visible, canvas.position_ids())

    def _states_behind_prefix(self, canvas: Canvas) -> Tensor:
        """(B, L, H) of blocks; all of a text in one pass, BD3-LM's training form, where they are the network's own.

        A network that reads the time has one for a pass, and blocks have a time each.
        """
        if self.spec.block_size != canvas.length or self.spec.time_conditioned:
            return states_in_text(self.hidden_states, canvas, self.spec)
        both = doubled(canvas, self.spec.shift)
        self.tally.add(len(both.tokens))
        embeddings, sigma = (
            self.transformer.vocab_embed(both.tokens),
            torch.zeros(len(both.tokens), device=canvas.device),
        )
        return both.gather(self.transformer(embeddings, sigma, self._mask(both.seen), both.positions))

    def _mask(self, seen: Visibility) -> Mask:
        """Where queries may look, as the network takes it."""
        return seen.tiled() if self.flex else seen.dense()

    def use_flex_attention(self) -> None:
        """See `Denoiser.use_flex_attention`."""
        self.flex = True

    def window_features(self, canvas: Canvas, window: Window) -> Tensor:
        """See `Denoiser.window_features`."""
        positions = canvas.position_ids()
        if positions is None:
            positions = torch.arange(canvas.length, device=canvas.device)[None]
        sent = window.sent(canvas.tokens)
        self.tally.add(len(sent))
        embeddings = self.transformer.vocab_embed(sent)
        visible = None
        if not window.sees_all(self.spec.block_size, canvas.real):
            visible = window.visible(attention_blocks(canvas, self.spec.block_size, self.columns), canvas.real)
        return self.transformer(embeddings, self._noise_level(canvas), visible, window.sent(positions), window)

    def _noise_level(self, canvas: Canvas) -> Tensor:
        """(B,) σ; 0 where the network was trained to read no time."""
        if not self.spec.time_conditioned:
            return torch.zeros(len(canvas), device=canvas.device)
        return -torch.log1p(-(1 - NOISE_END) * self.time(canvas))

    def timed(self) -> DitDenoiser:
        """See `Denoiser.timed`."""
        if not self.release.time_optional or self.spec.time_conditioned:
            return self
        timed = type(self)(self.transformer, replace(self.spec, time_conditioned=True), self.release)
        timed.tally, timed.flex = self.tally, self.flex
        return timed

    def head(self, features: Tensor) -> Tensor:
        """See `Denoiser.head`."""
        return log_probabilities(self.transformer.output_layer.linear(features), self.spec)

    def linear_head(self) -> LinearHead | None:
        """See `Denoiser.linear_head`."""
        return LinearHead.of(self.transformer.output_layer.linear, self.spec.excluded_ids(self.device))

    def token_embeddings(self) -> Tensor:
        """See `Denoiser.token_embeddings`."""
        return self.transformer.vocab_embed(torch.arange(self.spec.vocabulary, device=self.device))

    def blocks(self) -> nn.ModuleList:
        """See `Denoiser.blocks`."""
        return self.transformer.blocks

    def checkpoint_activations(self, contexts: Contexts | None = None) -> None:
        """See `Denoiser.checkpoint_activations`."""
        self.transformer.checkpoint_blocks(contexts)

    @property
    def network(self) -> nn.Module:
        """See `Denoiser.network`."""
        return self.transformer

    @property
    def output_layer(self) -> nn.Module:
        """See `Denoiser.output_layer`."""
        return self.transformer.output_layer.linear

    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """The release's own format, whose code ignores what config.json says besides. See `Denoiser.save`."""
        if compression is not None:
            self.require("compression", f"compression {compression!r}")
        folder, dtypes = Path(folder), self.release.dtypes
        tensors = {self.release.prefix + name: t.float() for name, t in self.transformer.state_dict().items()}
        tensors = {**(dtypes.cast(tensors) if released else tensors), **self.release.others}
        write_weights(tensors, folder / WEIGHTS_FILE)
        notes = {} if released or dtypes.are_float32 else dtypes.as_dict()
        section = {**self.release.settings, **notes}
        config = {key: value for key, value in self.release.config.items() if key != "fewstep"}
        config |= {"fewstep": section} if section else {}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_companions(self.companions, folder)

    @contextmanager
    def as_read(self, compression: Compression | None = None) -> Iterator[None]:
        """See `Denoiser.as_read`."""
        prefix, dtypes = self.release.prefix, self.release.dtypes
        with parameters_as(
            self.transformer, lambda name, value: dtypes.cast({prefix + name: value})[prefix + name].to(value)
        ):
            yield


class UniformDenoiser(DitDenoiser):
    """One of a uniform-state process: no mask, every column counts, and no canvas shows its time."""

    def head(self, features: Tensor) -> Tensor:
        """(…, V) over all entries; see `Denoiser.head`."""
        return self.transformer.output_layer.linear(features).float().log_softmax(-1)

    def linear_head(self) -> LinearHead | None:
        """See `Denoiser.linear_head`."""
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        return LinearHead.of(self.transformer.output_layer.linear, nothing)

    def time(self, canvas: Canvas) -> Tensor:
        """The canvas's own.

        Raises:
            UserError: it has none.
        """
        if canvas.time is None:
            raise UserError(
                "t is not given, and this model's noise leaves no masks by which its time could be told; give t, from "
                "0 (clean) to 1 (noise)"
            )
        return super().time(canvas)
