"""Autoregressive → diffusion: the same weights, another mask, one more token; and full attention → blocks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from teachers.canvas import Canvas, Context
from teachers.denoiser import UNBOUNDED, Denoiser, DenoiserSpec
from teachers.errors import UserError
from teachers.families import resolve
from teachers.families.family import Checkpoint
from teachers.families.stock.anatomy import longest, window_of
from teachers.families.stock.denoiser import StockDenoiser
from teachers.families.stock.loading import load_model
from teachers.families.stock.trial import check_denoiser
from teachers.source import reason
from teachers.vocabulary import gaps_of, read_tokenizer, rows_for
from teachers.weights import weight_of

PROBE = 3
"""Tokens of each of the two texts that a model is tried on."""
CLOSE = 1e-3
"""How far, of its largest, hidden states may be apart that ought to be the same [own]."""


def converted(
    name: str, tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec, in_context: bool = False
) -> StockDenoiser:
    """Load a model as the start of a denoiser: an autoregressive one, or a denoiser of ours that looks elsewhere.

    Args:
        in_context: it will be trained on canvases with a `Context`.

    Raises:
        UserError: see `from_autoregressive` and `from_denoiser`.
    """
    checkpoint = resolve(name)
    if "stock class" not in checkpoint.family.capabilities:
        raise UserError(
            f"model {name!r} is {checkpoint.family.title} and needs no conversion; "
            "distil it as teacher.path, or set model.init to an autoregressive model of a stock transformers class"
        )
    if spec.attention != "causal" and _is_denoiser(checkpoint):
        return from_denoiser(checkpoint, tokenizer, spec, in_context)
    return from_autoregressive(checkpoint, tokenizer, spec, in_context)


def in_blocks(student: Denoiser, size: int | None, name: str) -> Denoiser:
    """The same network with attention in blocks of ``size`` tokens: another mask is all that changes.

    Args:
        size: None for the attention that it has. name: the model's, for the message.

    Raises:
        UserError: it has another one, which its format fixes.
    """
    if size in (None, student.spec.block_size):
        return student
    if not isinstance(student, StockDenoiser) or student.release is not None:
        raise UserError(
            f"blocks.size is {size}, but the format of model {name!r} says what its tokens look at; leave blocks.size "
            "out, or start from a model in a stock layout, such as fewstep export --layout stock writes"
        )
    return student.with_blocks(size)


def from_denoiser(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec, in_context: bool = False
) -> StockDenoiser:
    """Load a denoiser of ours as the start of one whose tokens look elsewhere: full attention becomes blocks.

    Its mask and its embeddings stay as they are.

    Raises:
        UserError: it looks there already, or it has other tokens, another shift or fewer positions than ``spec``.
    """
    own = checkpoint.config["fewstep"]
    if (own["attention"], own.get("block_size")) == (spec.attention, spec.block_size):
        raise UserError(
            f"model {checkpoint.name!r} is a diffusion model already, with {spec.attention} attention; distil it as "
            "teacher.path, or set model.attention or model.block_size to another one, or model.init to an "
            "autoregressive model"
        )
    if (own["mask_id"], own["shift"]) != (spec.mask_id, spec.shift):
        raise UserError(
            f"model {checkpoint.name!r} has mask {own['mask_id']} and shift {own['shift']}, and this run mask "
            f"{spec.mask_id} and shift {spec.shift}; leave out tokenizer.mask, and set model.shift as the model has it"
        )
    model = load_model(checkpoint)
    _check_positions(checkpoint, model.config, spec, in_context)
    rows = weight_of(model.get_input_embeddings()).shape[0]
    _check_extends(checkpoint, rows, tokenizer)
    denoiser = StockDenoiser(model, replace(spec, vocabulary=rows, gaps=gaps_of(tokenizer, rows, spec.mask_id)))
    check_denoiser(denoiser, checkpoint.name)
    return denoiser


def _is_denoiser(checkpoint: Checkpoint) -> bool:
    """Whether it is one of ours, whose mask means something."""
    return (checkpoint.config.get("fewstep") or {}).get("attention", "causal") != "causal"


def from_autoregressive(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec, in_context: bool = False
) -> StockDenoiser:
    """Load an autoregressive model as the start of a denoiser.

    Embedding rows that the vocabulary lacks (the mask's) are added; the mask's embedding starts as the mean of the
    others, so that a masked position says nothing in particular.

    A table with more rows than the tokenizer has entries stays as it is: published models pad theirs.

    Args:
        in_context: it will be trained on canvases with a `Context`.

    Raises:
        UserError: the model comes with a tokenizer that gives other ids, or lacks rows for ordinary tokens; it is not
            autoregressive, has fewer positions than ``spec``, or can not look at what it should.
    """
    if _is_denoiser(checkpoint):
        raise UserError(
            f"model {checkpoint.name!r} is a diffusion model already; set model.init to an autoregressive one"
        )
    model = load_model(checkpoint)
    _check_positions(checkpoint, model.config, spec, in_context)
    had = weight_of(model.get_input_embeddings()).shape[0]
    _check_extends(checkpoint, had, tokenizer)
    if had < rows_for(tokenizer):
        model.resize_token_embeddings(rows_for(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {weight_of(model.get_input_embeddings()), weight_of(model.get_output_embeddings())}:
            mean = table[:had].mean(0)
            table[had:] = mean
            table[spec.mask_id] = mean
    rows = max(had, rows_for(tokenizer))
    spec = replace(spec, vocabulary=rows, gaps=gaps_of(tokenizer, rows, spec.mask_id))
    if spec.attention != "causal":
        _try(checkpoint, model, spec, in_context)
    denoiser = StockDenoiser(model, spec)
    check_denoiser(denoiser, checkpoint.name)
    return denoiser


def _check_positions(checkpoint: Checkpoint, config: PretrainedConfig, spec: DenoiserSpec, in_context: bool) -> None:
    most, (_, window) = longest(config), window_of(config) or (None, UNBOUNDED)
    if most is not None and spec.max_length > most:
        raise UserError(
            f"data.length {spec.max_length} is more than the {most} positions of model {checkpoint.name!r}; set "
            f"data.length to at most {most}"
        )
    if in_context and window < spec.max_length:
        raise UserError(
            f"model {checkpoint.name!r} has layers that look at {window} tokens alone, which block attention, "
            f"masks.anneal and masks.documents would undo; set data.length to at most {window}, or leave them out"
        )


def _try(checkpoint: Checkpoint, model: PreTrainedModel, spec: DenoiserSpec, in_context: bool) -> None:
    try:
        _check_sight(checkpoint, model, spec, in_context)
    except UserError:
        raise
    except Exception as error:  # of any type: what a network does with arguments that it does not know
        raise UserError(
            f"model {checkpoint.name!r} ({model.config.model_type}) can not be read with attention and positions of "
            f"ours ({reason(error)}); convert another model, or leave out block attention and masks"
        ) from error


@torch.no_grad()
def _check_sight(checkpoint: Checkpoint, model: PreTrainedModel, spec: DenoiserSpec, in_context: bool) -> None:
    """Refuse a model that does not look where it should, by what it makes of a few tokens.

    Recurrent layers read from left to right whatever they are told; others take no mask or no positions.
    """
    device = weight_of(model.get_input_embeddings()).device
    tokens = torch.arange(2 * PROBE, device=device)[None] % (spec.vocabulary - 1)
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % spec.vocabulary
    as_it_is = [model.base_model(input_ids=z, use_cache=False).last_hidden_state[:, :1] for z in (tokens, other)]
    if not _same(*as_it_is):
        raise UserError(
            f"model {checkpoint.name!r} ({model.config.model_type}) is not autoregressive: it looks at later tokens "
            "from the start; set model.init to a causal language model"
        )
    full = StockDenoiser(model, replace(spec, attention="full", block_size=None, shift=False))
    one, two = Canvas.of(tokens, spec.mask_id), Canvas.of(other, spec.mask_id)
    if _same(full.hidden_states(one)[:, :1], full.hidden_states(two)[:, :1]):
        raise UserError(
            f"model {checkpoint.name!r} ({model.config.model_type}) can not look at later tokens, so that it can not "
            "fill in masks; set model.init to a model all of whose layers are attention"
        )
    if not in_context:
        return
    documents = torch.arange(2 * PROBE, device=device)[None] // PROBE
    packed = full.hidden_states(replace(one, context=Context(documents)))
    alone = full.hidden_states(Canvas.of(tokens[:, PROBE:], spec.mask_id))
    if not _same(packed[:, PROBE:], alone):
        raise UserError(
            f"model {checkpoint.name!r} ({model.config.model_type}) takes no attention mask or positions of ours, "
            "which block attention, masks.anneal and masks.documents need; set model.attention to full and leave "
            "those out, or convert another model"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= CLOSE * one.abs().max())


def _check_extends(checkpoint: Checkpoint, rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that is not the model's own, with special tokens added at most."""
    ours, own, folder = tokenizer.get_vocab(), {}, checkpoint.folder
    if any(folder.glob("*token*")) or any(folder.glob("vocab*")):
        try:
            own = read_tokenizer(folder).get_vocab()
        except Exception as error:  # tokenizers raises bare ones
            raise UserError(
                f"cannot read the tokenizer of model {checkpoint.name!r} ({reason(error)}); make its folder whole, or "
                "remove its tokenizer files if they are not to be compared with the one you train with"
            ) from error
    changed = any(ours.get(token) != entry for token, entry in own.items())
    lacking = any(entry >= rows and entry not in tokenizer.added_tokens_decoder for entry in ours.values())
    if changed or lacking:
        raise UserError(
            f"model {checkpoint.name!r} has {rows} vocabulary entries of its own and the tokenizer "
            f"{len(tokenizer)} others; set tokenizer.path to the tokenizer the model was trained with, with a mask "
            "token added"
        )
