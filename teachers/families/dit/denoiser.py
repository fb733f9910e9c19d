"""A diffusion transformer as a denoiser, read from and written in the format of its release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from teachers.canvas import Canvas
from teachers.capability import Capability
from teachers.denoiser import Compression, Contexts, Denoiser, DenoiserSpec, log_probabilities
from teachers.errors import UserError
from teachers.families.dit.network import DiffusionTransformer, Shape
from teachers.families.family import Checkpoint, Reading
from teachers.headers import read_headers
from teachers.vocabulary import token_id
from teachers.weights import check_finite, read_weights, write_weights

WEIGHTS_FILE = "model.safetensors"
LONGEST = 2**20  # tokens of a canvas; nothing in the network bounds them, and no memory holds more [own]
NOISE_END = 1e-3  # of log-linear noise: σ(t) = −ln(1 − (1 − NOISE_END) t) [code]


@dataclass(frozen=True)
class Release:
    """What a checkpoint of a release is like besides its weights.

    Attributes:
        prefix: of every parameter's name.
        config: its config.json; what of it means nothing to us is kept, and written again.
        capabilities: its family's.
    """

    prefix: str
    config: Mapping[str, Any]
    capabilities: frozenset[Capability]


class DitDenoiser(Denoiser):
    """A `DiffusionTransformer` of an absorbing process; what it gives is normalised without the mask's column."""

    def __init__(self, transformer: DiffusionTransformer, spec: DenoiserSpec, release: Release):
        super().__init__()
        self.transformer, self.spec, self.release = transformer, spec, release
        self.capabilities = release.capabilities

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """What the output's linear layer reads; see `Denoiser.features`."""
        hidden = self.hidden_states(canvas)
        return hidden if select is None else hidden[select]

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """See `Denoiser.hidden_states`."""
        if embeddings is None:
            embeddings = self.transformer.vocab_embed(canvas.tokens)
        visible = None if canvas.real is None else canvas.real[:, None, None]
        return self.transformer(embeddings, self._noise_level(canvas), visible, canvas.position_ids())

    def _noise_level(self, canvas: Canvas) -> Tensor:
        """(B,) σ; 0 where the network was trained to read no time."""
        if not self.spec.time_conditioned:
            return torch.zeros(len(canvas), device=canvas.device)
        return -torch.log1p(-(1 - NOISE_END) * self.time(canvas))

    def head(self, features: Tensor) -> Tensor:
        """See `Denoiser.head`."""
        return log_probabilities(self.transformer.output_layer.linear(features), self.spec.mask_id)

    def token_embeddings(self) -> Tensor:
        """See `Denoiser.token_embeddings`."""
        return self.transformer.vocab_embed(torch.arange(self.spec.vocabulary, device=self.device))

    def blocks(self) -> nn.ModuleList:
        """See `Denoiser.blocks`."""
        return self.transformer.blocks

    def checkpoint_activations(self, contexts: Contexts | None = None) -> None:
        """See `Denoiser.checkpoint_activations`."""
        self.transformer.checkpoint_blocks(contexts)

    def save(self, folder: str | Path, compression: Compression | None = None) -> None:
        """The release's own format, whose code ignores what config.json says besides. See `Denoiser.save`."""
        if compression is not None:
            self.require("compression", f"compression {compression!r}")
        tensors = {self.release.prefix + name: t.float() for name, t in self.transformer.state_dict().items()}
        write_weights(tensors, Path(folder) / WEIGHTS_FILE)
        config = {**self.release.config, "fewstep": self.spec.as_dict()}
        (Path(folder) / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_dit(
    checkpoint: Checkpoint,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase | None,
    shape: Shape,
    prefix: str,
    trained_length: int,
    time_conditioned: bool,
) -> DitDenoiser:
    """A checkpoint of an absorbing process, whose mask is the last entry of the vocabulary.

    Args:
        shape, trained_length, time_conditioned: what its config.json says.
        prefix: see `Release`.

    Raises:
        UserError: see `teachers.families.family.Family.load`.
    """
    read_headers(checkpoint.folder, checkpoint.config)
    mask_id = shape.vocabulary - 1
    saved = checkpoint.config.get("fewstep") or {}
    eos_id, pad_id = saved.get("eos_id"), saved.get("pad_id")
    if tokenizer is not None:
        check_mask_is_free(tokenizer, mask_id, checkpoint.name)
        eos_id, pad_id = token_id(tokenizer, "eos"), token_id(tokenizer, "pad")
    spec = DenoiserSpec(
        mask_id, shape.vocabulary, LONGEST, eos_id, None if pad_id == mask_id else pad_id,
        time_conditioned=time_conditioned, trained_length=trained_length,
    )  # fmt: skip
    release = Release(prefix, checkpoint.config, checkpoint.family.capabilities)
    return DitDenoiser(load_transformer(checkpoint, reading, shape, prefix), spec, release).eval()


def load_transformer(checkpoint: Checkpoint, reading: Reading, shape: Shape, prefix: str) -> DiffusionTransformer:
    """The network of a checkpoint's weights.

    Raises:
        UserError: no such file, or tensors missing, left over, of other shapes or not finite.
    """
    with torch.device("meta"):
        transformer = DiffusionTransformer(shape)
    tensors = read_weights(checkpoint.folder / WEIGHTS_FILE, checkpoint.name)
    parameters = {name for name, _ in transformer.named_parameters()}
    values: dict[str, Tensor] = {}
    for name in list(tensors):  # one at a time, so that no two copies of all are there; buffers stay in float32
        tensor, plain = tensors.pop(name), name.removeprefix(prefix)
        values[plain] = tensor.to(reading.precision if plain in parameters else torch.float32)
    wanted = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in values.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise UserError(
                f"model {checkpoint.name!r} has {prefix}{name} of shape {given.get(name, 'none')} where its "
                f"config.json asks for {wanted.get(name, 'none')}; its {WEIGHTS_FILE} is not whole, or of another model"
            )
    check_finite(values.items(), checkpoint.name)
    transformer.load_state_dict(values, assign=True)
    return transformer


def check_mask_is_free(tokenizer: PreTrainedTokenizerBase, mask_id: int, name: str) -> None:
    """Refuse a tokenizer with which the mask would be text: it is one entry more, or a special one.

    Raises:
        UserError: it has more entries than the model called ``name``, or an ordinary one in the mask's place.
    """
    ordinary = mask_id < len(tokenizer) and mask_id not in tokenizer.added_tokens_decoder
    if len(tokenizer) > mask_id + 1 or ordinary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries but model {name!r} has {mask_id} and, as the last one, its "
            "mask; give the tokenizer the model was trained with"
        )
