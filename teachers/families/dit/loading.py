"""From the files of a release to a denoiser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from teachers.companions import read_companions
from teachers.denoiser import UNBOUNDED, DenoiserSpec
from teachers.errors import UserError
from teachers.families.dit.denoiser import DitDenoiser, Release, UniformDenoiser
from teachers.families.dit.family import Layout
from teachers.families.dit.network import DiffusionTransformer, OutputLayer
from teachers.families.family import Checkpoint, Reading
from teachers.families.stock.dtypes import Dtypes
from teachers.headers import Shapes, check_shapes, read_headers
from teachers.vocabulary import gaps_of, token_id
from teachers.weights import check_finite, read_weights


def load_dit(
    checkpoint: Checkpoint,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase | None,
    layout: Layout,
    settings: Mapping[str, Any],
) -> DitDenoiser:
    """The denoiser of a checkpoint.

    Args:
        layout: what its family says of it.
        settings: what a person said of it, of its family's options.

    Raises:
        UserError: see `teachers.families.family.Family.load`.
    """
    headers = read_headers(checkpoint.folder, checkpoint.config)
    masked = "absorbing process" in checkpoint.family.capabilities
    mask_id = mask_of(checkpoint, layout, tokenizer, settings) if masked else layout.shape.vocabulary
    if masked and mask_id != layout.shape.vocabulary - 1:  # no file of the release says so
        settings = {**settings, "mask_id": mask_id}
    network = empty_network(checkpoint, layout, headers.shapes)
    others: dict[str, Tensor] = {}
    if not reading.empty:
        tensors = read_tensors(headers.files, checkpoint.name)
        others = {name: tensors.pop(name) for name in layout.others}
        fill_network(network, tensors, layout.prefix, reading, checkpoint.name)
    config = checkpoint.config
    release = Release(
        layout.prefix, config, checkpoint.family.capabilities, settings, others, layout.time_optional,
        Dtypes.of(headers, config), read_companions(checkpoint.folder, config),
    )  # fmt: skip
    kind = DitDenoiser if masked else UniformDenoiser
    return kind(network, spec_of(layout, mask_id, tokenizer), release).eval()


def sketch_dit(checkpoint: Checkpoint, layout: Layout, settings: Mapping[str, Any], blocks: int | None) -> DitDenoiser:
    """See `teachers.families.family.Family.sketch`."""
    shape = layout.shape if blocks is None else replace(layout.shape, blocks=blocks)
    with torch.device("meta"):
        network = DiffusionTransformer(shape)
    release = Release(layout.prefix, checkpoint.config, checkpoint.family.capabilities, settings)
    return DitDenoiser(network, spec_of(layout, mask_of(checkpoint, layout, None, settings), None), release).eval()


def spec_of(layout: Layout, mask_id: int, tokenizer: PreTrainedTokenizerBase | None) -> DenoiserSpec:
    """What samplers and objectives must know of the network."""
    vocabulary, gaps = layout.shape.vocabulary, ()
    ends: tuple[int | None, int | None] = (None, None)
    if tokenizer is not None:
        ends = token_id(tokenizer, "eos"), token_id(tokenizer, "pad")
        if mask_id < vocabulary:  # without a mask every entry is a state of the process
            gaps = gaps_of(tokenizer, vocabulary, mask_id)
    return DenoiserSpec(
        mask_id, vocabulary, UNBOUNDED, ends[0], None if ends[1] == mask_id else ends[1],
        attention=layout.attention, block_size=layout.block_size, time_conditioned=layout.time_conditioned,
        trained_length=layout.trained_length, gaps=gaps,
    )  # fmt: skip


def mask_of(
    checkpoint: Checkpoint, layout: Layout, tokenizer: PreTrainedTokenizerBase | None, settings: Mapping[str, Any]
) -> int:
    """The mask: what was set, the tokenizer's own, or else the last entry of the vocabulary, as in every release.

    Raises:
        UserError: it is no entry, or the tokenizer is of another model.
    """
    vocabulary, chosen = layout.shape.vocabulary, settings.get("mask_id")
    own = None if tokenizer is None else token_id(tokenizer, "mask")
    mask_id = next(mask for mask in (chosen, own, vocabulary - 1) if mask is not None)
    if tokenizer is not None:
        ordinary = mask_id < len(tokenizer) and mask_id not in tokenizer.added_tokens_decoder
        if len(tokenizer) > vocabulary or (ordinary and chosen is None):
            raise UserError(
                f"the tokenizer has {len(tokenizer)} entries but model {checkpoint.name!r} has {vocabulary - 1} and, "
                "as the last one, its mask; give the tokenizer the model was trained with"
            )
    if not 0 <= mask_id < vocabulary:
        raise UserError(
            f"mask_id {mask_id} is outside the {vocabulary} entries of model {checkpoint.name!r}; leave it out, its "
            f"mask is {vocabulary - 1}"
        )
    return mask_id


def empty_network(
    checkpoint: Checkpoint,
    layout: Layout,
    shapes: Shapes,
    output_layer: OutputLayer | None = None,
) -> DiffusionTransformer:
    """The network of a layout, on no device.

    Args:
        shapes: of all tensors of the checkpoint, under their whole names.
        output_layer: see `DiffusionTransformer`.

    Raises:
        UserError: tensors are missing, left over or of other shapes.
    """
    _check_sizes(checkpoint, layout, shapes)
    with torch.device("meta"):
        network = DiffusionTransformer(layout.shape, output_layer)
    given = {name: shape for name, shape in shapes.items() if name not in layout.others}
    wanted = {layout.prefix + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_shapes(given, wanted, checkpoint.name)
    return network


def _check_sizes(checkpoint: Checkpoint, layout: Layout, shapes: Shapes) -> None:
    """Refuse sizes that are not those of the files, before a network is made of them."""
    beginning = layout.prefix + "blocks."
    blocks = len({name.split(".")[beginning.count(".")] for name in shapes if name.startswith(beginning)})
    if blocks != layout.shape.blocks:  # before any is made: a config.json may say a billion
        raise UserError(
            f"model {checkpoint.name!r} has weights of {blocks} blocks where its config.json asks for "
            f"{layout.shape.blocks}; its weights are not whole, or of another model"
        )
    if layout.shape.hidden % layout.shape.heads:
        raise UserError(
            f"the config.json of model {checkpoint.name!r} has {layout.shape.heads} heads on a width of "
            f"{layout.shape.hidden}, which they must divide; put the release's config.json back"
        )
    sizes = layout.shape.vocabulary, layout.shape.hidden, layout.shape.conditioning
    largest = max((number for shape in shapes.values() for number in shape), default=0)
    if max(sizes) > largest:
        raise UserError(
            f"the config.json of model {checkpoint.name!r} has a size of {max(sizes)}, and its largest tensor has "
            f"{largest} rows; put the release's config.json back"
        )


def read_tensors(files: Iterable[Path], name: str) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's files."""
    return {key: tensor for file in files for key, tensor in read_weights(file, name).items()}


def fill_network(
    network: DiffusionTransformer, tensors: dict[str, Tensor], prefix: str, reading: Reading, name: str
) -> None:
    """Give an empty network its weights; ``tensors`` is empty afterwards.

    Raises:
        UserError: some are not finite.
    """
    parameters = {key for key, _ in network.named_parameters()}
    values: dict[str, Tensor] = {}
    for key in list(tensors):  # one at a time, so that no two copies of all are there; buffers stay in float32
        tensor, plain = tensors.pop(key), key.removeprefix(prefix)
        values[plain] = tensor.to(reading.precision if plain in parameters else torch.float32)
    check_finite(values.items(), name)
    network.load_state_dict(values, assign=True)
