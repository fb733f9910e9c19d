"""DiffuLLaMA and DiffuGPT (Gong et al. 2410.17891): LLaMA-2 and GPT-2, which went on predicting the next position.

Their config.json is the autoregressive model's own and says nothing of diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from teachers.families.family import GPT2, Facts
from teachers.families.language.family import DECODER, LanguageFamily, Names, same
from teachers.headers import read_headers

PREFIX = "denoise_model."
FUNCTIONS = ("layer_norm_epsilon", "activation_function")
NEW_MASK = 50257  # of DiffuGPT's medium size, the first entry after GPT-2's own [code]


class DiffuLlama(LanguageFamily):
    """Known by its name alone: the user's word, or where it is."""

    name = "diffullama"
    title = "DiffuLLaMA"
    releases = ("diffusionfamily/diffullama",)
    model_types = ("llama",)
    stock_type = "llama"
    fields = DECODER
    optional = same("tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim")
    mask_id = 811
    shift = True

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Of none: nothing tells it from LLaMA."""
        return False

    def recognises_files(self, config: Mapping[str, Any], name: str, folder: Path) -> bool:
        """By the name that the release has: the repository's, the folder's, or that of the folder it is in."""
        if "fewstep" in config:  # a stock folder of ours says what it is
            return False
        places = Path(name.partition("@")[0]).parts[-2:]
        return super().recognises(config) and any(self.name in place.lower() for place in places)


class DiffuGpt(LanguageFamily):
    """Known by its tensors' names. Its positions are learned: they are the canvas's columns."""

    name = "diffugpt"
    title = "DiffuGPT"
    releases = ("diffusionfamily/diffugpt-s", "diffusionfamily/diffugpt-m")
    capabilities = LanguageFamily.capabilities - {"compression"}  # of linear layers, and its are GPT-2's Conv1D
    model_types = ("gpt2",)
    stock_type = "gpt2"
    lent_tokenizer = GPT2
    key_names: ClassVar[Names] = {r"^denoise_model\.": "transformer.", r"^embed_tokens\.": "transformer.wte."}
    fields = same(
        "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon", "activation_function", "vocab_size"
    )
    optional = same("n_inner", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    fixed: ClassVar[Mapping[str, Any]] = {
        "tie_word_embeddings": True,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }
    rotary = False
    mask_id = 10541
    shift = True

    def facts(self) -> Facts:
        """See `Family.facts`."""
        return replace(super().facts(), mask_id=f"{self.mask_id}; {NEW_MASK} (-m)")

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Of none: nothing tells it from GPT-2."""
        return False

    def recognises_files(self, config: Mapping[str, Any], name: str, folder: Path) -> bool:
        """By the names of the tensors."""
        if not super().recognises(config) or not any(folder.glob("*.safetensors")):
            return False
        return any(tensor.startswith(PREFIX) for tensor in read_headers(folder, config).tensors)

    def released_mask(self, config: Mapping[str, Any], vocabulary: int) -> int | None:
        """An ordinary token in the small size, an added one in the medium one."""
        return NEW_MASK if vocabulary > NEW_MASK else super().released_mask(config, vocabulary)
