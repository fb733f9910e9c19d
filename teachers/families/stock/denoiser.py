"""Any stock transformers causal language model as a denoiser: Qwen3, Qwen2, Llama and what is shaped like them.

No model code: the stock class, an attention mask and a `shift` flag. A full-attention denoiser is the same network with
``config.is_causal = False``, which transformers saves, so an exported folder is bidirectional for whoever loads it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from teachers.attention import Mask
from teachers.cache import Window, attention_blocks
from teachers.canvas import Canvas
from teachers.capability import Capability
from teachers.companions import is_tokenizer, write_companions
from teachers.denoiser import Attention, Compression, Contexts, Denoiser, DenoiserSpec, Layout, log_probabilities
from teachers.errors import UserError
from teachers.families.stock import CAPABILITIES
from teachers.families.stock.anatomy import (
    find_blocks,
    first_position,
    has_linear_head,
    logits_of,
    takes_positions,
    window_of,
)
from teachers.families.stock.context import states_behind_prefix, states_in_context
from teachers.families.stock.dtypes import FLOAT32, Dtypes
from teachers.families.stock.flex import accept_tiles
from teachers.families.stock.release import Release
from teachers.families.stock.saving import (
    parameters_as,
    released_tensors,
    rounding,
    save_network,
    save_tensors,
    stock_names,
)
from teachers.families.stock.window import states_in_window
from teachers.masks import additive, sees_all, visibility, visible_in_context
from teachers.ops.head import LinearHead
from teachers.positions import at
from teachers.prefix import asked_rows, doubled, states_in_text
from teachers.visibility import Visibility

SHARD = "5GB"  # the largest weights file that is written


class StockDenoiser(Denoiser):
    """A transformers causal language model read through a `DenoiserSpec`.

    Args:
        release: what it was read from, which `save` writes again; None to write a stock folder. The networks of
            releases count positions and blocks in columns of the canvas; ours do not count padding.
        dtypes: of the tensors in the files it was read from.
        companions, columns: see `Denoiser`; a release's network counts columns, without being told.

    Attributes:
        maskless: whether the class needs no mask where all is seen; see `teachers.families.stock.trial`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: DenoiserSpec,
        release: Release | None = None,
        dtypes: Dtypes = FLOAT32,
        companions: Mapping[str, bytes] | None = None,
        columns: bool = False,
    ):
        super().__init__()
        if type(spec.mask_id) is not int:
            raise UserError(f"mask id {spec.mask_id!r} is no whole number; set mask_id to the id of the mask token")
        if spec.time_conditioned:
            raise UserError("a stock causal language model takes no time input; set time_conditioned to false")
        if not 0 <= spec.mask_id < spec.vocabulary:
            raise UserError(f"mask id {spec.mask_id} is outside the model's vocabulary of {spec.vocabulary} entries")
        if spec.attention not in get_args(Attention):
            raise UserError(f"attention {spec.attention!r} is unknown; allowed are {', '.join(get_args(Attention))}")
        if (spec.attention == "block") != (spec.block_size is not None):
            raise UserError(
                f"attention is {spec.attention!r} and block_size {spec.block_size}; 'block' needs a block_size, the "
                "others take none"
            )
        if spec.block_size is not None and (type(spec.block_size) is not int or spec.block_size < 1):
            raise UserError(f"block_size is {spec.block_size!r}; it must be an integer of at least 1")
        _check_window(model.config, spec)
        model.config.is_causal = spec.attention == "causal"
        model.config.use_cache = False
        model.config.mask_token_id = spec.mask_id
        model.config.fewstep = {**spec.as_dict(), **({"columns": True} if columns else {})}
        self.model, self.spec, self.release = model, spec, release
        self.columns = columns or release is not None
        self.dtypes, self.companions = dtypes, dict(companions or {})
        self.maskless = False
        self.takes_positions, self.first_position = takes_positions(model), first_position(model)
        missing: set[Capability] = set() if find_blocks(model) is not None else {"blocks", "dispatch"}
        missing |= set() if model.supports_gradient_checkpointing else {"checkpointing"}
        missing |= set() if self.takes_positions and not _has_window(model.config, spec) else {"cache"}
        self.capabilities = (CAPABILITIES if release is None else release.capabilities) - missing

    def with_blocks(self, size: int) -> StockDenoiser:
        """The same network with attention in blocks of ``size`` tokens, sharing the parameters.

        Raises:
            UserError: it has layers with a window.
        """
        assert self.release is None, "a release fixes what tokens look at"
        spec = replace(self.spec, attention="block", block_size=size)
        in_blocks = StockDenoiser(self.model, spec, None, self.dtypes, self.companions, self.columns).eval()
        in_blocks.maskless = self.maskless
        return in_blocks

    def inputs(
        self, canvas: Canvas, embeddings: Tensor | None = None, block_size: int | None = None
    ) -> dict[str, Mask | None]:
        """What the model's ``forward`` is given for a canvas.

        Args:
            embeddings: see `Denoiser.hidden_states`. block_size: of block attention; None for the spec's.
        """
        z, real = canvas.tokens, canvas.real
        places, attention_mask = None if self.columns else canvas.position_ids(), real
        size = block_size or self.spec.block_size
        if self.spec.attention == "block" and not (self.maskless and sees_all(canvas.length, size)):
            attention_mask = self._mask(visibility("block", canvas.length, z.device, size, real, self.columns))
            if places is None:  # some classes count the tokens of a mask, which they know as (B, L) only
                places = torch.arange(canvas.length, device=z.device)[None]
        inputs: dict[str, Mask | None] = {"input_ids": z} if embeddings is None else {"inputs_embeds": embeddings}
        inputs["attention_mask"] = attention_mask
        if places is not None and self.takes_positions:
            inputs["position_ids"] = places + self.first_position
        return inputs

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """See `Denoiser.hidden_states`; under `shift`, what predicts a token is read at the one before it.

        A row's first token has none before it: there it is read at its own.
        """
        if canvas.prefix is not None:
            assert embeddings is None, "blocks behind a prefix are of training, which reads tokens"
            return self._states_behind_prefix(canvas)
        if canvas.context is not None:
            assert embeddings is None, "a context is of training, which reads tokens"
            self.tally.add(len(canvas))
            mask = self._mask(visible_in_context(canvas.context, canvas.length, canvas.device, canvas.real))
            return states_in_context(self.model, canvas, mask, self.spec.shift)
        self.tally.add(len(canvas))
        hidden = self.model.base_model(**self.inputs(canvas, embeddings), use_cache=False).last_hidden_state
        if self.spec.shift:
            hidden = torch.where(self._first(canvas), hidden, hidden.roll(1, dims=1))
        return hidden

    def window_features(self, canvas: Canvas, window: Window) -> Tensor:
        """See `Denoiser.window_features`."""
        blocks = attention_blocks(canvas, self.spec.block_size, self.columns)
        places = None if self.columns else canvas.position_ids()
        if places is None:
            places = torch.arange(canvas.length, device=canvas.device)[None]
        sent = window.sent(canvas.tokens)
        self.tally.add(len(sent))
        mask = None
        if not (self.maskless and window.sees_all(self.spec.block_size, canvas.real)):
            mask = additive(window.visible(blocks, canvas.real), self.model.dtype)
        inputs: dict[str, Tensor | None] = {
            "input_ids": sent,
            "attention_mask": mask,
            "position_ids": window.sent(places) + self.first_position,
        }
        return states_in_window(self.model, inputs, window)

    def _states_behind_prefix(self, canvas: Canvas) -> Tensor:
        """(B, L, H) of blocks; all of a text in one pass where they are the network's own."""
        if self.spec.block_size != canvas.length or not self.takes_positions:
            return states_in_text(self.hidden_states, canvas, self.spec)
        both = doubled(canvas, self.spec.shift)
        self.tally.add(len(both.tokens))
        return states_behind_prefix(self.model, both, self._mask(both.seen), self.first_position)

    def _mask(self, seen: Visibility | Tensor) -> Mask:
        """Where queries may look, as the network takes it."""
        if isinstance(seen, Visibility) and self.flex:
            return seen.tiled()
        return additive(seen if isinstance(seen, Tensor) else seen.dense(), self.model.dtype)

    def use_flex_attention(self) -> None:
        """See `Denoiser.use_flex_attention`."""
        self.flex = accept_tiles(self.model)
        if not self.flex and self.spec.attention == "block":
            raise UserError(
                f"{type(self.model).__name__} computes attention in a way of its own, which flex attention can not "
                "replace; leave train.flex_attention out"
            )

    @staticmethod
    def _first(canvas: Canvas) -> Tensor:
        """(1 or B, L, 1) True at a row's first token, and wherever all before it is padding."""
        positions = canvas.position_ids()
        if positions is None:
            positions = torch.arange(canvas.length, device=canvas.device)[None]
        return (positions == 0)[..., None]

    def token_embeddings(self) -> Tensor:
        """See `Denoiser.token_embeddings`; by the module, which in some families scales them."""
        return self.model.get_input_embeddings()(torch.arange(self.spec.vocabulary, device=self.device))

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """The hidden states; see `Denoiser.features`."""
        if canvas.prefix is not None and select is not None:
            canvas, select = asked_rows(canvas, select)
        hidden = self.hidden_states(canvas)
        return hidden if select is None else at(hidden, select)

    def head(self, features: Tensor) -> Tensor:
        """The model's own, without what is no text; see `Denoiser.head`."""
        return log_probabilities(logits_of(self.model, features), self.spec)

    @cached_property
    def _has_linear_head(self) -> bool:
        return has_linear_head(self.model)

    def linear_head(self) -> LinearHead | None:
        """See `Denoiser.linear_head`."""
        if not self._has_linear_head:
            return None
        return LinearHead.of(self.output_layer, self.spec.excluded_ids(self.device))

    def blocks(self) -> nn.ModuleList:
        """See `Denoiser.blocks`."""
        blocks = find_blocks(self.model)
        if blocks is None:
            self.require("blocks", "choosing transformer blocks")
        assert blocks is not None, "who has none declares none"
        return blocks

    def checkpoint_activations(self, contexts: Contexts | None = None) -> None:
        """See `Denoiser.checkpoint_activations`."""
        # no dropout, so there is no random state to keep
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        if contexts is not None:
            options["context_fn"] = contexts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name that transformers 5.17 and 5.23 both know
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self.model.disable_input_require_grads()  # only the reentrant kind needs it; a teacher would keep graphs
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # transformers asks for it; their parts stay in eval mode

    @property
    def network(self) -> PreTrainedModel:
        """See `Denoiser.network`."""
        return self.model

    @property
    def output_layer(self) -> nn.Module:
        """See `Denoiser.output_layer`."""
        layer = self.model.get_output_embeddings()
        assert layer is not None, "a causal language model has one"
        return layer

    def save(self, folder: str | Path, compression: Compression | None = None, released: bool = False) -> None:
        """As transformers saves it, or as the release has it; see `Denoiser.save`."""
        folder = Path(folder)
        if compression is not None:
            self._save_packed(folder, compression)
        elif not released or (self.dtypes.are_float32 and self.model.dtype == torch.float32):
            save_network(self.model, folder, max_shard_size=SHARD)
        else:
            save_tensors(self.model, self.dtypes.cast(released_tensors(self.model)), folder, max_shard_size=SHARD)
        notes = {} if released or compression or self.dtypes.are_float32 else self.dtypes.as_dict()
        if self.release is not None:
            self.release.write_config(folder, **notes)
        elif notes or (released and not compression):
            config = copy.deepcopy(self.model.config)
            config.fewstep = {**config.fewstep, **notes}
            config.dtype = self.dtypes.usual_type if released else torch.float32
            config.save_pretrained(folder)
        write_companions(self.companions, folder)

    def _save_packed(self, folder: Path, compression: Compression) -> None:
        from teachers.families.stock.packed import packed_state, quantization_config, scheme_of

        self.require("compression", f"compression {compression!r}")
        if self.release is not None:
            raise UserError(
                f"{compression} weights are read under the names of a stock class, not in the format of a release; "
                "choose layout stock, or leave the layout out"
            )
        scheme = scheme_of(self.model, compression)
        save_network(self.model, folder, state_dict=packed_state(self.model, scheme), max_shard_size=SHARD)
        config = copy.deepcopy(self.model.config)
        config.quantization_config = quantization_config(self.model, scheme)
        config.save_pretrained(folder)

    @contextmanager
    def as_read(self, compression: Compression | None = None) -> Iterator[None]:
        """See `Denoiser.as_read`."""
        if compression is not None:
            from teachers.families.stock.packed import read_weights, scheme_of

            read = read_weights(self.model, scheme_of(self.model, compression))
        else:
            read = rounding(self.model, self.dtypes)
        with parameters_as(self.model, read):
            yield

    @contextmanager
    def laid_out(
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase | None
    ) -> Iterator[tuple[Denoiser, PreTrainedTokenizerBase | None]]:
        """See `Denoiser.laid_out`."""
        if layout == "own" or (layout == "stock" and self.release is None):
            yield self, tokenizer
            return
        with stock_names(self.model):
            if layout == "stock":
                dtypes = self.dtypes.only(released_tensors(self.model))
                own = {name: content for name, content in self.companions.items() if is_tokenizer(name)}
                yield StockDenoiser(self.model, self.spec, None, dtypes, own, self.columns), tokenizer
            else:
                from teachers.families.language.as_sdar import as_sdar

                with as_sdar(self, tokenizer) as pair:
                    yield pair


def _has_window(config: PretrainedConfig, spec: DenoiserSpec) -> bool:
    """Whether a layer looks at fewer tokens than a row can have."""
    window = window_of(config)
    return window is not None and window[1] < spec.max_length


def _check_window(config: PretrainedConfig, spec: DenoiserSpec) -> None:
    """Refuse blocks where a layer has a window of its own, which a mask of ours would take the place of.

    Raises:
        UserError: it does, and rows can be longer than the window.
    """
    if spec.attention == "block" and _has_window(config, spec):
        field, window = window_of(config) or ("", spec.max_length)
        raise UserError(
            f"{field} is {window} in the config.json of this {config.model_type} model, and block attention would undo "
            f"it in rows of up to {spec.max_length} tokens; set attention to full, which keeps it, or {field} to null "
            "in config.json"
        )
