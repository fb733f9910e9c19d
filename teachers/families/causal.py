"""Any stock transformers causal language model as a denoiser: Qwen3, Qwen2, Llama and what is shaped like them.

No model code: the stock class, an attention mask and a `shift` flag. A full-attention denoiser is the same network with
``config.is_causal = False``, which transformers saves, so an exported folder is bidirectional for whoever loads it.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from teachers.canvas import Canvas
from teachers.denoiser import Attention, Contexts, Denoiser, DenoiserSpec
from teachers.errors import UserError, nearest
from teachers.markov import is_markov
from teachers.masks import attention_mask_4d
from teachers.saving import save_network
from teachers.source import check_model_folder, check_trust, model_folder, parse_source, reason


class CausalDenoiser(Denoiser):
    """A transformers causal language model read through a `DenoiserSpec`."""

    capabilities = frozenset({"hidden states", "embeddings", "blocks", "adapters", "checkpointing", "compression"})

    def __init__(self, model: PreTrainedModel, spec: DenoiserSpec):
        super().__init__()
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
        model.config.is_causal = spec.attention == "causal"
        model.config.use_cache = False
        model.config.mask_token_id = spec.mask_id
        model.config.fewstep = spec.as_dict()
        self.model = model
        self.spec = spec

    def hidden_states(self, canvas: Canvas, embeddings: Tensor | None = None) -> Tensor:
        """See `Denoiser.hidden_states`; under `shift`, what predicts a position is read one before it (0: its own)."""
        z, real = canvas.tokens, canvas.real
        attention_mask = real
        if self.spec.attention == "block":
            attention_mask = attention_mask_4d(
                "block", z.shape[1], self.model.dtype, z.device, self.spec.block_size, real
            )
        read = {"input_ids": z} if embeddings is None else {"inputs_embeds": embeddings}
        hidden = self.model.base_model(
            **read, attention_mask=attention_mask, position_ids=canvas.position_ids(), use_cache=False
        ).last_hidden_state
        if self.spec.shift:
            hidden = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
        return hidden

    def token_embeddings(self) -> Tensor:
        """See `Denoiser.token_embeddings`; by the module, which in some families scales them."""
        return self.model.get_input_embeddings()(torch.arange(self.spec.vocabulary, device=self.device))

    def features(self, canvas: Canvas, select: Tensor | None = None) -> Tensor:
        """The hidden states; see `Denoiser.features`."""
        hidden = self.hidden_states(canvas)
        return hidden if select is None else hidden[select]

    def head(self, features: Tensor) -> Tensor:
        """The output embedding, the mask's column excluded; see `Denoiser.head`."""
        # called as a module: under ZeRO 3 its weight is there only within its own forward
        logits = self.model.get_output_embeddings()(features).float()
        forbidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        forbidden[self.spec.mask_id] = True
        return logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)

    def blocks(self) -> nn.ModuleList:
        """See `Denoiser.blocks`."""
        return self.model.base_model.layers

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

    def save(self, folder: str | Path) -> None:
        """See `Denoiser.save`."""
        save_network(self.model, Path(folder))


def create_denoiser(model_type: str, shape: dict[str, Any], spec: DenoiserSpec) -> CausalDenoiser:
    """Build a randomly initialised denoiser of a stock architecture.

    Args:
        model_type: transformers' name: "qwen3", "llama", "qwen2", …
        shape: fields of that architecture's config, e.g. ``hidden_size``.

    Raises:
        UserError: an unknown architecture or field, or values that no model can be made from.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        close = nearest(model_type, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
        raise UserError(f"model.type {model_type!r} is no causal language model of transformers{close}; try 'qwen3'")
    own = {
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.max_length,
        "eos_token_id": spec.eos_id,
        "pad_token_id": spec.pad_id,
        "bos_token_id": None,
    }
    # what transformers reads, too, under the names of older configs
    known = {**AutoConfig.for_model(model_type).to_dict(), "rope_theta": None, "rope_scaling": None}
    for key in shape:
        if key in own:
            raise UserError(f"model.shape.{key} follows from the tokenizer and data.length; leave it out")
        if key not in known:  # transformers takes any key, and leaves the field that was meant at its default
            raise UserError(f"model.shape.{key} is not a field of {model_type}{nearest(key, list(known))}")
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **own, **shape))
    except Exception as error:  # whatever a number out of range meets first: transformers, torch or the memory
        raise UserError(
            f"no {model_type} can be made from model.shape ({reason(error)}); correct its values"
        ) from error
    return CausalDenoiser(model, spec)


def load_pretrained(name: str, revision: str | None = None, trust_remote_code: str | None = None) -> PreTrainedModel:
    """Load a causal language model in float32, from safetensors only; every failure is a `UserError`.

    Args:
        name, revision: see `parse_source`.
        trust_remote_code: the model's name again, to run the code that comes with it; None for stock classes only.
    """
    trusted = check_trust(parse_source(name, revision), trust_remote_code)
    path = model_folder(name, revision, code=trusted)
    if not (path / "config.json").is_file():
        raise UserError(f"{name} is not a model folder: it has no config.json; give a folder saved by save_pretrained")
    check_model_folder(path, trusted)
    if is_markov(str(path)):
        raise UserError(
            f"model {name!r} is an exact Markov source, not a network; it can be teacher.path and evaluate.judge, and "
            "the place here is for a network, such as RUN/model of fewstep pretrain"
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=trusted,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and the hub raise a dozen types for one thing: unreadable
        raise UserError(
            f"cannot load model {name!r} ({reason(error)}); give a folder with config.json and whole safetensors "
            "weights"
        ) from error
    if report["missing_keys"]:  # transformers makes these up at random and only warns
        raise UserError(
            f"model {name!r} has no weights for {min(report['missing_keys'])}; its safetensors files are not whole, "
            "or of another architecture than its config.json"
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and quantizer.quantization_config.quant_method == "compressed-tensors":
        # the format unpacks at the whole model's first forward, and a denoiser calls only its base model
        quantizer.compressor.decompress_model(model)
        for module in model.modules():  # the shape it was packed from stays behind, as a parameter that cannot train
            module._parameters.pop("weight_shape", None)
    for key, value in model.named_parameters():
        if not value.isfinite().all():
            raise UserError(
                f"model {name!r} has weights in {key} that are not finite; its safetensors files are damaged"
            )
    return model


def load_denoiser(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mask_id: int | None = None,
    revision: str | None = None,
    trust_remote_code: str | None = None,
    **overrides: Any,
) -> CausalDenoiser:
    """Load a denoiser: a fewstep checkpoint as it was saved, or any causal language model with the spec you name.

    Args:
        name, revision, trust_remote_code: see `load_pretrained`.
        tokenizer: where the mask token is looked for when neither ``mask_id`` nor the config names it.
        mask_id: overrides both.
        overrides: fields of `DenoiserSpec`; they win over what the checkpoint says. None means not set.
    """
    model = load_pretrained(name, revision, trust_remote_code)
    saved = {k: v for k, v in (getattr(model.config, "fewstep", None) or {}).items() if k in SPEC_FIELDS}
    overrides = {k: v for k, v in overrides.items() if v is not None}
    if overrides.get("attention", "block") != "block":
        saved.pop("block_size", None)
    tokenizer_mask = tokenizer.mask_token_id if tokenizer is not None else None
    for candidate in (mask_id, getattr(model.config, "mask_token_id", None), tokenizer_mask):
        if candidate is not None:
            mask_id = candidate
            break
    else:
        raise UserError(f"{name!r} names no mask token, nor does its tokenizer; set mask_id in the config")
    config_vocabulary = model.get_output_embeddings().weight.shape[0]
    if tokenizer is not None:
        check_tokenizer(tokenizer, config_vocabulary, mask_id, name)
    values = {
        "max_length": model.config.max_position_embeddings,
        "eos_id": tokenizer.eos_token_id if tokenizer is not None else model.config.eos_token_id,
        "pad_id": tokenizer.pad_token_id if tokenizer is not None else model.config.pad_token_id,
        **saved,
        **overrides,
        "mask_id": mask_id,
        "vocabulary": config_vocabulary,
    }
    return CausalDenoiser(model, DenoiserSpec(**values))


SPEC_FIELDS = {f.name for f in fields(DenoiserSpec)}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: int, mask_id: int, name: str) -> None:
    """Refuse a tokenizer that can produce tokens the model does not have, or that calls another token the mask."""
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries but model {name!r} has {vocabulary}; "
            "give the tokenizer the model was trained with"
        )
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id != mask_id:
        raise UserError(
            f"the tokenizer's mask token is {tokenizer.mask_token_id} but model {name!r} uses {mask_id}; "
            "give the model's own tokenizer, or set mask_id"
        )
